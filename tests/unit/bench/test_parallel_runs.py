"""Runs that get ready side by side and are timed one at a time, with made-up processes."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from ttf.bench import parallel

SERVES = """
import sys, time
{before}
print("ttf worker: ready", flush=True)
assert sys.stdin.readline() == "go\\n"
{after}
print('ttf worker: [{{"method": "{name}"}}]', flush=True)
"""


def _code(name: str, before: str = "print('a warning')", after: str = "") -> str:
    return SERVES.format(name=name, before=before, after=after)


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "RESERVED", 0.0)
    monkeypatch.setattr(parallel, "ENOUGH", 0.0)


def _measured(codes: dict[str, str], jobs: int, seconds: float) -> tuple[dict[str, Any], list[str]]:
    said: list[str] = []
    timings: Any = [SimpleNamespace(label=name) for name in codes]
    found = parallel.measured(timings, lambda t: [sys.executable, "-c", codes[t.label]], jobs, seconds, said.append)
    return {timing.label: rows for timing, rows in found}, said


def test_all_of_them_get_their_turn() -> None:
    rows, said = _measured({name: _code(name) for name in ("a", "b", "c")}, jobs=2, seconds=60)
    assert rows == {name: [{"method": name}] for name in ("a", "b", "c")}
    assert said == ["getting ready: 2 runs side by side", "getting ready: 1 runs side by side"]


def test_none_is_timed_while_another_gets_ready(tmp_path: Any) -> None:
    """The second one takes longer to get ready, and the first finds it ready when its turn comes."""
    slow = f"time.sleep(0.5); open(r'{tmp_path}/ready', 'w')"
    quick = f"import os; assert os.path.exists(r'{tmp_path}/ready')"
    rows, _ = _measured({"quick": _code("quick", after=quick), "slow": _code("slow", slow)}, jobs=2, seconds=60)
    assert set(rows) == {"quick", "slow"}


def test_what_fails_is_said_and_the_others_go_on() -> None:
    codes = {
        "early": _code("early", before="print('out of memory'); sys.exit(2)"),
        "late": _code("late", after="print('no such card'); sys.exit(2)"),
        "fine": _code("fine"),
    }
    rows, said = _measured(codes, jobs=3, seconds=60)
    assert rows == {"fine": [{"method": "fine"}]}
    assert "failed: early: out of memory" in said and "failed: late: a warning | no such card" in said


def test_what_is_not_ready_in_time_is_left(tmp_path: Any) -> None:
    stuck = f"time.sleep(30); open(r'{tmp_path}/went_on', 'w')"
    codes = {"stuck": _code("stuck", stuck), "fine": _code("fine"), "never begun": _code("never begun")}
    rows, said = _measured(codes, jobs=2, seconds=2)
    assert rows == {"fine": [{"method": "fine"}]}
    assert said[1:] == ["left for the next call: stuck", "left for the next call: never begun"]
