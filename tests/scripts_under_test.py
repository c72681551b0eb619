"""Scripts as a user calls them, in processes of their own that have torch from the start.

``python`` starts Python anew; ``script`` forks a process (multiprocessing's forkserver) that has imported what the
scripts import, and nothing else, which saves ten seconds a call.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIMIT = 600.0  # seconds
IMPORTED = ["tests.imports_of_scripts"]


@dataclass(frozen=True)
class Done:
    """How a process ended, and what it said."""

    returncode: int | None
    stdout: str
    stderr: str


class Script:
    """A script that runs.

    Args:
        name: of the file in ``scripts``.
        arguments: of its command line.
        environment: variables that differ from those of the tests; not those that are read when torch is imported.
    """

    def __init__(self, name: str, *arguments: str, **environment: str) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(IMPORTED)
        self._folder = tempfile.TemporaryDirectory()
        self._said = [Path(self._folder.name) / stream for stream in ("stdout", "stderr")]
        told = ([f"scripts/{name}.py", *arguments], {**os.environ, **environment}, [str(file) for file in self._said])
        self.process: ForkServerProcess = context.Process(target=_run, args=told, daemon=True)
        self.process.start()

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.join()

    def done(self) -> Done:
        """Wait for its end."""
        self.process.join(LIMIT)
        if self.process.is_alive():
            self.kill()
        stdout, stderr = (file.read_text() if file.exists() else "" for file in self._said)
        return Done(self.process.exitcode, stdout, stderr)


def _run(argv: list[str], environment: dict[str, str], said: list[str]) -> None:
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(environment)
    for number, file in enumerate(said, 1):
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    sys.argv[:] = argv
    sys.path.insert(0, str(ROOT / "scripts"))
    runpy.run_path(argv[0], run_name="__main__")


def script(name: str, *arguments: str, **environment: str) -> Done:
    """Run a script to its end, see ``Script``."""
    return Script(name, *arguments, **environment).done()


def python(*arguments: str, **environment: str) -> Done:
    """A new Python."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=env, capture_output=True, text=True, timeout=LIMIT
    )
    return Done(done.returncode, done.stdout, done.stderr)
