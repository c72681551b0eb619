"""scripts/sweep.py with a note of each measurement: lines "ID begin" and "ID end" in the file TTF_TEST_NOTES.

TTF_TEST_HANG=N: the N-th measurement of this process does not end. TTF_TEST_FAIL=N: it fails.
"""

from __future__ import annotations

import os
import runpy
import sys
import threading
from itertools import count
from typing import Any

from ttf.results.store import Row, signature
from ttf.tasks.run import Run

measure, numbers = Run.measure, count(1)


def note(text: str) -> None:
    with open(os.environ["TTF_TEST_NOTES"], "a") as file:
        file.write(f"{text}\n")


def noted(self: Run, config: Row, *given: Any) -> Row:
    name, number = signature(config), str(next(numbers))
    note(f"{name} begin")
    if number == os.environ.get("TTF_TEST_HANG"):
        note("hangs")
        threading.Event().wait()
    if number == os.environ.get("TTF_TEST_FAIL"):
        raise RuntimeError("the machine is on fire")
    row = measure(self, config, *given)
    note(f"{name} end")
    return row


if __name__ == "__main__":
    Run.measure = noted  # type: ignore[method-assign]
    sys.argv[0] = "scripts/sweep.py"
    runpy.run_path(sys.argv[0], run_name="__main__")
