"""Runs of a benchmark whose models are compiled side by side, in processes of their own, and timed one after the other.

Compiling takes a core and minutes, timing a quiet machine and seconds. So a wave of processes gets ready together; when
all of them are, one at a time is told to go on.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Thread

import torch

from ttf.bench.timing import Timing
from ttf.results.costs import Row

MARK = "ttf worker: "  # in front of what a process tells the one that started it
READY, GO = "ready", "go"
LONGEST = 120.0  # seconds of one run
RESERVED = 6.0  # seconds to time one run
ENOUGH = 25.0  # seconds; with less time than that left nothing is begun
LINES = 5  # of what a process said before it failed
Event = tuple["Worker", str | None]


def serve(timing: Timing) -> None:
    """What a process does that ``measured`` started: get ready, wait for its turn, time, tell the rows."""
    run = timing.prepared()
    print(f"{MARK}{READY}", flush=True)
    if sys.stdin.readline().strip() == GO:
        print(f"{MARK}{json.dumps(run())}", flush=True)


class Worker:
    """A process that prepares one run.

    Args:
        timing: the run.
        command: that ends in ``serve``.
        events: gets what the process tells, and None when it ends.
    """

    def __init__(self, timing: Timing, command: Sequence[str], events: SimpleQueue[Event]) -> None:
        self.timing, self.said = timing, deque[str](maxlen=LINES)
        count = 2 if torch.cuda.is_available() else torch.get_num_threads()  # which is part of what a CPU is called
        threads = {"OMP_NUM_THREADS": str(count), "TORCHINDUCTOR_COMPILE_THREADS": "2"}
        self._process = subprocess.Popen(
            command,
            env={**os.environ, **threads},
            text=True,
            start_new_session=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        Thread(target=self._listen, args=(events,), daemon=True).start()

    def _listen(self, events: SimpleQueue[Event]) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(MARK):
                events.put((self, line.removeprefix(MARK).strip()))
            elif line.strip():
                self.said.append(line.strip())
        self._process.wait()
        events.put((self, None))

    def go(self) -> None:
        """Tell it that it is its turn."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended, and says so itself
            print(GO, file=self._process.stdin, flush=True)

    def stop(self) -> None:
        """End it, and whatever it started."""
        if self._process.poll() is None:
            with suppress(ProcessLookupError):  # it ended meanwhile, and another thread waits for it
                os.killpg(self._process.pid, 9)
            self._process.wait()


class Wave:
    """Workers that get ready together.

    Args:
        timings: their runs.
        command: of a run.
    """

    def __init__(self, timings: Sequence[Timing], command: Callable[[Timing], Sequence[str]]) -> None:
        self._events: SimpleQueue[Event] = SimpleQueue()
        self.waiting = [Worker(timing, command(timing), self._events) for timing in timings]
        self.ready: list[Worker] = []
        self.failed: list[Worker] = []

    def __enter__(self) -> Wave:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in [*self.waiting, *self.ready]:
            worker.stop()

    def get_ready(self, until: float) -> None:
        """Wait until all of them are ready or have failed, or until a point of ``time.monotonic``."""
        while self.waiting:
            spare = until - RESERVED * (len(self.ready) + 1) - time.monotonic()
            try:
                worker, told = self._events.get(timeout=max(0.0, spare))
            except Empty:
                return
            (self.waiting if worker in self.waiting else self.ready).remove(worker)
            (self.ready if told == READY else self.failed).append(worker)

    def stop_the_others(self) -> list[Worker]:
        """End those that are not ready."""
        for worker in self.waiting:
            worker.stop()
        return self.waiting

    def rows(self, worker: Worker) -> list[Row]:
        """Time one that is ready; none where it fails, or says nothing for two minutes."""
        worker.go()
        if told := self._told_by(worker):
            return list(json.loads(told))
        worker.stop()
        self.failed.append(worker)
        return []

    def _told_by(self, worker: Worker) -> str | None:
        """What it tells next; None at its end. What others have to say is over: they were stopped, or are done."""
        while True:
            try:
                who, told = self._events.get(timeout=LONGEST)
            except Empty:
                return None
            if who is worker:
                return told


def measured(
    todo: Sequence[Timing],
    command: Callable[[Timing], Sequence[str]],
    jobs: int,
    seconds: float,
    say: Callable[[str], None],
) -> Iterator[tuple[Timing, list[Row]]]:
    """The rows of some runs, as they come.

    Args:
        todo: the runs, the most important first.
        command: what starts a process that ends in ``serve`` for a run.
        jobs: processes that get ready together; all of them fit into the memory of the device.
        seconds: after that time no run is begun, and what is not ready is stopped.
        say: gets one line a wave, and one for each run that fails or is left.
    """
    until, left = time.monotonic() + seconds, list(todo)
    while left and until - time.monotonic() > ENOUGH:
        with Wave(left[:jobs], command) as wave:
            left = left[jobs:]
            say(f"getting ready: {len(wave.waiting)} runs side by side")
            wave.get_ready(until)
            late = [worker.timing for worker in wave.stop_the_others()]
            for worker in wave.ready:
                if rows := wave.rows(worker):
                    yield worker.timing, rows
            for worker in wave.failed:
                say(f"failed: {worker.timing.label}: {' | '.join(worker.said) or 'it said nothing'}")
            left = [*late, *left]
            wave.waiting = []
            if late:
                break
    for timing in left:
        say(f"left for the next call: {timing.label}")
