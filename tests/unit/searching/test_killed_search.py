"""kill -9 of a search: the same command goes on, measures nothing twice, and finds what an unbroken run finds."""

from __future__ import annotations

import time
from pathlib import Path

from tests.scripts_under_test import Script

TOLD = ("model=vit_mini", "budget=0.6", "images=16", "evaluations=20", "batch_size=4")
LIMIT = 120.0  # seconds


def _search(folder: Path) -> Script:
    return Script("search", *TOLD, f"out={folder}/x.yaml", f"paths.logs={folder}/logs")


def _lines(folder: Path) -> list[str]:
    log = folder / "x.yaml.log"
    return log.read_text().splitlines() if log.exists() else []


def _killed_at(folder: Path, lines: int) -> None:
    search, deadline = _search(folder), time.monotonic() + LIMIT
    while len(_lines(folder)) < lines and time.monotonic() < deadline and search.alive():
        time.sleep(0.005)
    search.kill()


def _found(folder: Path) -> list[str]:
    """What the file of the schedule says, but for its command, which has a place on this machine."""
    return [line for line in (folder / "x.yaml").read_text().splitlines() if not line.startswith(("command", "digest"))]


def test_after_kill_minus_nine_a_search_goes_on(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert _search(whole).done().returncode == 0
    count = len(_lines(whole))
    for moment in (1, count // 3, 2 * count // 3):
        _killed_at(broken, moment)
        assert moment <= len(_lines(broken)) < count and not (broken / "x.yaml").exists()
    done = _search(broken).done()
    assert done.returncode == 0, done.stderr
    assert _lines(broken) == _lines(whole) and _found(broken) == _found(whole)
    assert not [file for file in broken.rglob(".*") if file.is_file()]
