"""Commands as users give them, each in a process of its own that has imported what the scripts import."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tests.scripts_under_test import Code

DRILL = """
import json, os, pwd, sys, time, traceback
from ttf import commands

SAID = {said!r}

def gone(*_):
    raise KeyError("no entry")

def prepared(folder, settings):
    os.chdir(folder)
    for name in settings.get("without", ()):
        os.environ.pop(name, None)
    if "without" in settings:
        pwd.getpwuid = gone
    if "clock" in settings:
        now = time.time
        time.time = lambda: now() - 1e8
    if "removed" in settings:
        os.mkdir("x")
        os.chdir("x")
        os.rmdir(os.getcwd())
    sys.stdout = open(1, "w", encoding=settings.get("codec", "utf-8"), closefd=False)
    sys.stderr = open(2, "w", encoding=settings.get("codec", "utf-8"), errors="backslashreplace", closefd=False)

def child(folder, given, settings):
    file = os.open(SAID, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    try:
        prepared(folder, settings)
        exec(settings.get("first", ""))
        sys.argv = ["ttf", *given]
        commands.main()
        return 0
    except SystemExit as end:
        return end.code or 0
    except BaseException:
        traceback.print_exc()
        return 99

for folder, given, settings in json.loads({cases!r}):
    begin, pid = time.monotonic(), os.fork()
    if not pid:
        code = child(folder, given, settings)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    print(json.dumps([code, time.monotonic() - begin, open(SAID, errors="replace").read()]))
"""
Outcome = tuple[int, float, str]


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[], Any]) -> Any:
    """What ``make`` says (as JSON), made by the first worker of a test run that asks for it under this name."""
    run = factory.getbasetemp()
    file = (run.parent if "PYTEST_XDIST_WORKER" in os.environ else run) / f"{name}.json"
    with FileLock(f"{file}.lock"):
        if not file.exists():
            file.write_text(json.dumps(make()))
    return json.loads(file.read_text())


def drilled(
    folder: Path, cases: Sequence[tuple[str, list[str], Mapping[str, Any]]], **environment: str
) -> list[Outcome]:
    """Exit status, seconds, and what was said, of each case.

    Args:
        folder: for a file of this function.
        cases: the working directory, the arguments of ``ttf``, and what is odd, see ``prepared`` in ``DRILL``.
        environment: variables that differ from those of the tests.
    """
    done = Code(DRILL.format(cases=json.dumps(cases), said=str(folder / "said")), **environment).done()
    assert done.returncode == 0, done.stderr
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]
