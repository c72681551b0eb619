"""Processes as a user starts them, most of them forked from one that has torch: see ``tests.fork_server``.

``python`` starts Python anew, for what is decided when torch is imported (``LD_PRELOAD``, ``OMP_NUM_THREADS``).
``fresh`` has torch and timm already and imports ttf anew, six seconds less. ``script`` has imported what the scripts
import, two seconds less again.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from tests.fork_server import SCRIPTS

ROOT = Path(__file__).parents[1]
LIMIT = 600.0  # seconds
RUN = "TTF_TEST_RUN"  # the folder of the server's sockets, and the process that it serves


def begin_run() -> tempfile.TemporaryDirectory[str]:
    """For the process that starts the others: where they meet. The server comes with the first call."""
    folder = tempfile.TemporaryDirectory(prefix="ttf-tests-")
    os.environ[RUN] = f"{folder.name}:{os.getpid()}"
    return folder


def _connected(suffix: str) -> socket.socket:
    """A connection to the server of this run."""
    folder, process = os.environ[RUN].rsplit(":", 1)
    address, client = f"{folder}/socket", socket.socket(socket.AF_UNIX)
    with FileLock(f"{folder}/lock"):
        if not os.path.exists(f"{folder}/started"):
            command = [sys.executable, "-m", "tests.fork_server", address, process]
            subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, start_new_session=True)
            Path(folder, "started").touch()
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with suppress(FileNotFoundError, ConnectionRefusedError):
            client.connect(address + suffix)
            return client
        time.sleep(0.05)
    raise TimeoutError("tests/fork_server.py did not start")


@dataclass(frozen=True)
class Done:
    """How a process ended, and what it said."""

    returncode: int
    stdout: str
    stderr: str


class Forked:
    """A process that runs.

    Args:
        suffix: of the server.
        arguments: ``-c CODE``, ``-m MODULE`` or ``SCRIPT``, and those of its command line.
        folder: to run in, and to import from.
        environment: variables that differ from those of the tests; None takes one away.
    """

    def __init__(
        self, suffix: str, arguments: tuple[str, ...], folder: str | Path, environment: Mapping[str, str | None]
    ) -> None:
        changed = {**os.environ, **environment}
        self._folder = tempfile.TemporaryDirectory()
        self._said = [Path(self._folder.name) / stream for stream in ("stdout", "stderr")]
        call = {
            "arguments": arguments,
            "environment": {name: value for name, value in changed.items() if value is not None},
            "folder": os.path.abspath(folder),
            "said": [str(file) for file in self._said],
        }
        self._connection = _connected(suffix)
        self._connection.settimeout(LIMIT)
        self._lines = self._connection.makefile("rw")
        self._lines.write(json.dumps(call) + "\n")
        self._lines.flush()
        self._code: int | None = None
        self.process = int(self._lines.readline())

    def alive(self) -> bool:
        """Whether it runs still."""
        return self._code is None and not select.select([self._connection], [], [], 0.0)[0]

    def kill(self) -> None:
        """kill -9."""
        with suppress(ProcessLookupError):
            if self.alive():
                os.kill(self.process, signal.SIGKILL)
        self.done()

    def done(self) -> Done:
        """Wait for its end."""
        if self._code is None:
            self._code = int(self._lines.readline())
            self._connection.close()
        stdout, stderr = (file.read_text() if file.exists() else "" for file in self._said)
        return Done(self._code, stdout, stderr)


class Python(Forked):
    """``fresh`` that goes on running."""

    def __init__(self, *arguments: str, folder: str | Path = ".", **environment: str | None) -> None:
        super().__init__("", arguments, folder, environment)


class Script(Forked):
    """A script that runs: its name in ``scripts``, its arguments, and variables of the environment."""

    def __init__(self, name: str, *arguments: str, **environment: str) -> None:
        super().__init__(SCRIPTS, (f"scripts/{name}.py", *arguments), ROOT, environment)


class Code(Forked):
    """Code that runs where the scripts' modules are imported: its text, and variables of the environment."""

    def __init__(self, text: str, **environment: str | None) -> None:
        super().__init__(SCRIPTS, ("-c", text), ROOT, environment)


def script(name: str, *arguments: str, **environment: str) -> Done:
    """Run a script to its end, see ``Script``."""
    return Script(name, *arguments, **environment).done()


def fresh(*arguments: str, folder: str | Path = ".", **environment: str | None) -> Done:
    """``python -c CODE``, ``python -m MODULE`` or ``python SCRIPT`` to its end, see ``Forked``."""
    return Python(*arguments, folder=folder, **environment).done()


def ranks(world: int) -> list[dict[str, str]]:
    """Variables of the environment that torchrun gives to each of its processes."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world)]


def python(*arguments: str, **environment: str) -> Done:
    """A new Python."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=env, capture_output=True, text=True, timeout=LIMIT
    )
    return Done(done.returncode, done.stdout, done.stderr)
