"""A table's rows: which are there, which can be measured here, and measuring them, together with other processes."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import DictConfig
from rich.progress import Progress

from ttf import experiments
from ttf.errors import MissingError
from ttf.experiments import Planned, Table
from ttf.results.claims import claim
from ttf.results.kept import kept, write_kept
from ttf.results.rows import Rows, plain
from ttf.results.store import Row, signature
from ttf.tasks.availability import ADVICE, Machine
from ttf.tasks.base import progress, within
from ttf.tasks.identity import settings
from ttf.tasks.run import execute

DONE, OPEN = "done", "not run"
NOT_MEASURED = "make doctor and ttf sweep table=TABLE --list say what that takes: data, weights, or training"
POLL = 2.0  # seconds between looks at rows that other processes measure


class Keys:
    """Keys of planned runs, kept from one command to the next as long as no config or table changes.

    Args:
        cache: folder.
    """

    def __init__(self, cache: Path) -> None:
        files = sorted(experiments.CONFIGS.rglob("*.yaml"))
        code = sorted(Path(experiments.__file__).parent.rglob("*.py"))
        digest = hashlib.sha256(b"".join(file.read_bytes() for file in (*files, *code))).hexdigest()
        self._path, self._new = cache / f"keys-{digest[:16]}.json", False
        self._known: dict[str, list[str]] = (kept(self._path) or {}).get("keys", {})

    def of(self, run: Planned) -> tuple[str, str]:
        """The key of the rows of a run, and the signature of its data set."""
        if run.address not in self._known:
            found = plain(settings(experiments.composed(run)))
            self._known[run.address] = [signature(found), signature(found["data_set"])]
            self._new = True
        key, data = self._known[run.address]
        return key, data

    def keep(self) -> None:
        """Write what is new."""
        if self._new:
            for old in self._path.parent.glob("keys-*.json"):
                old.unlink()
            write_kept(self._path, {"keys": self._known})


@dataclass
class State:
    """A planned run and where it stands.

    Attributes:
        run: what is planned.
        key: of its rows.
        data: signature of its data set.
        word: ``DONE``, "failed", or a key of ``ADVICE``.
        row: the finished row.
        error: why it failed.
    """

    run: Planned
    key: str
    data: str
    word: str = OPEN
    row: Row | None = None
    error: str = ""


@dataclass
class Sweep:
    """The runs of a table at a scale.

    Args:
        table: the table.
        scale: "tiny", "mini" or "paper".
        paths: the config group ``paths``.
        further: overrides for every run, such as places of data.
        force: measure what is done again.
    """

    table: Table
    scale: str
    paths: DictConfig
    further: Sequence[str] = ()
    force: bool = False
    machine: Machine = field(default_factory=Machine)
    digests: dict[str, str | None] = field(default_factory=dict)

    def states(self) -> list[State]:
        """Where every run stands."""
        rows, keys = Rows(self.paths.rows, self.paths.runs), Keys(Path(self.paths.cache))
        found = [State(run, *keys.of(run)) for run in self.table.planned(self.scale)]
        keys.keep()
        for state in found:
            self._look(state, rows)
        return found

    def _look(self, state: State, rows: Rows) -> None:
        """Set ``word`` and ``row``: the row on this machine's data, or, without any data here, the published one."""
        if state.data not in self.digests:
            self.digests[state.data] = self.machine.digest(experiments.composed(state.run, self.further))
        digest = self.digests[state.data]
        fitting = [row for row in rows.with_key(state.key) if digest in (None, row["config"]["data"])]
        state.row = fitting[0] if fitting else None
        missing = self.machine.missing
        state.word = DONE if state.row else missing(experiments.composed(state.run, self.further))

    def open(self, states: Sequence[State]) -> list[State]:
        """Those that can be measured here, and are not."""
        again = {DONE, OPEN} if self.force else {OPEN}
        return [state for state in states if state.word in again]

    def run(self, states: Sequence[State]) -> None:
        """Measure what is open; what fails is noted, and the next one goes on. Waits for rows of other processes."""
        todo = self.open(states)
        with progress("rows") as bar, within(bar):
            task = bar.add_task(f"{self.table.name}, {self.scale}", total=len(todo))
            waiting = list(self._passes(todo, bar, task))
            while waiting:
                time.sleep(POLL)
                waiting = list(self._passes(waiting, bar, task))

    def _passes(self, todo: Sequence[State], bar: Progress, task: int) -> Iterator[State]:
        """Measure; gives those that another process is at."""
        for state in todo:
            with claim(Path(self.paths.runs) / f"{state.key}.claim") as held:
                if not held:
                    yield state
                    continue
                self._measure(state)
            bar.console.print(
                f"{state.word}: {state.run.address}" + (f": {state.error}" if state.error else ""), soft_wrap=True
            )
            bar.advance(task)  # type: ignore[arg-type]

    def _measure(self, state: State) -> None:
        if not self.force:
            self._look(state, Rows(self.paths.rows, self.paths.runs))  # another process may have been faster
            if state.word == DONE:
                return
        cfg = experiments.composed(state.run, [*self.further, *(["force=true"] if self.force else [])])
        try:
            state.row, state.word = execute(cfg, state.run.arguments), DONE
        except MissingError as error:
            state.word, state.error = "no weights", str(error)
        except Exception as error:  # recorded beside the rows; the sweep goes on
            state.word, state.error = "failed", str(error)

    def publish(self, states: Sequence[State]) -> list[str]:
        """Write finished rows to the packs; names of those that changed."""
        wanted: dict[str, list[Row]] = {}
        for state in states:
            if state.row:
                wanted.setdefault(state.row["id"], []).append(state.run.named)
        return Rows(self.paths.rows, self.paths.runs).publish(self.table.name, wanted, self.force) if wanted else []


def summary(states: Sequence[State]) -> str:
    """One line: how many rows are done, and what the others lack, with what to do about it."""
    counts = Counter(state.word for state in states)
    parts = [f"{counts.pop(DONE, 0)} of {len(states)} rows are there"]
    for word, count in counts.most_common():
        parts.append(f"{count} {word}" + (f" ({ADVICE[word]})" if word in ADVICE else ""))
    return "; ".join(parts)


def listing(states: Sequence[State]) -> str:
    """A line a run: where it stands and its command."""
    width = max(len(state.word) for state in states)
    lines = [f"{state.word:{width}}  ttf eval {' '.join(state.run.arguments)}" for state in states]
    return "\n".join([*lines, summary(states)])


@dataclass(frozen=True)
class Drawing:
    """Where tables and figures go, and of which models.

    Attributes:
        models: None: those of the scale.
        folder: ``tables`` and ``figures`` are written into it.
        published: what is missing is then not said of this machine, so that files are the same on every one.
    """

    models: Sequence[str] | None
    folder: str
    published: bool = False


def draw(sweep: Sweep, drawing: Drawing) -> list[Path]:
    """The table and its figures from the rows that there are; the files."""
    from ttf.report import Options, render
    from ttf.results.measured import read

    suffix = "" if sweep.scale == "tiny" or not sweep.table.scales else f"_{sweep.scale}"
    models = drawing.models or sweep.table.models(sweep.scale)

    def missing(experiment: str) -> str:
        if drawing.published:
            return "not measured"
        return sweep.machine.missing(experiments.composed(Planned(experiment, "", ()), sweep.further))

    advice = {"not measured": NOT_MEASURED} if drawing.published else ADVICE
    options = Options(Path(sweep.paths.results), models, suffix, missing, advice, out=Path(drawing.folder))
    return render(sweep.table, read(sweep.paths.rows, sweep.paths.runs), options)
