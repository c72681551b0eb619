"""Sweeps: what is listed, several processes, kill -9, failures, a repository without data."""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.scripts_under_test import ROOT, Done, Script, fresh

WORKER = "../tests/unit/sweep_worker"
ROWS = 13  # of Table 6 on one model
RUNS = 12  # kappa = 0.5 and tau = 150 are the same run
FEW = 7  # rows of Table 7


def _sweep(folder: Path, table: str = "table7", **environment: str) -> Script:
    """A process that measures a table on the embedded model, 8 images a row."""
    places = [f"paths.logs={folder}/logs", f"paths.results={folder}/results"]
    told = [f"table={table}", "scale=mini", "overrides=['limit=8']", *places]
    return Script(WORKER, *told, TTF_TEST_NOTES=f"{folder}/notes", **environment)


def _notes(folder: Path) -> list[str]:
    file = folder / "notes"
    return file.read_text().splitlines() if file.exists() else []


def _count(folder: Path, word: str) -> Counter[str]:
    return Counter(line.split()[0] for line in _notes(folder) if line.endswith(f" {word}"))


def _rows(folder: Path) -> dict[str, int]:
    return {f.stem: f.stat().st_mtime_ns for f in (folder / "logs" / "runs").glob("*.json") if "." not in f.stem}


def _wait_for(process: Script, folder: Path, line: str) -> None:
    deadline = time.monotonic() + 120
    while line not in _notes(folder) and time.monotonic() < deadline and process.alive():
        time.sleep(0.02)


def _last(done: Done) -> str:
    return done.stdout.strip().splitlines()[-1]


def test_two_processes_share_the_rows(tmp_path: Path) -> None:
    both = [_sweep(tmp_path, "table6") for _ in range(2)]
    for done in [process.done() for process in both]:
        assert done.returncode == 0, done.stderr
        assert _last(done) == f"{ROWS} of {ROWS} rows are there"
    assert len(_rows(tmp_path)) == RUNS
    assert _count(tmp_path, "begin") == _count(tmp_path, "end") == Counter(_rows(tmp_path).keys())  # once each
    assert not [f for f in (tmp_path / "logs" / "runs").iterdir() if f.suffix == ".claim" or ".started" in f.name]


def test_after_kill_minus_nine_the_others_finish_and_nothing_is_lost(tmp_path: Path) -> None:
    killed = _sweep(tmp_path, TTF_TEST_HANG="3")
    _wait_for(killed, tmp_path, "hangs")
    before = _rows(tmp_path)
    assert len(before) == 2, killed.done()
    other = _sweep(tmp_path)  # finds two rows done and one claimed
    deadline = time.monotonic() + 120
    while len(_rows(tmp_path)) < FEW - 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(_rows(tmp_path)) == FEW - 1  # the claimed one is waited for
    killed.kill()
    done = other.done()
    assert done.returncode == 0, done.stderr
    assert _last(done) == f"{FEW} of {FEW} rows are there"
    begun, ended = _count(tmp_path, "begin"), _count(tmp_path, "end")
    assert ended == Counter(_rows(tmp_path).keys()) and len(ended) == FEW
    assert sorted(begun.values()) == [1] * (FEW - 1) + [2]  # that which was cut off began once more
    assert {name: _rows(tmp_path)[name] for name in before} == before
    again = _sweep(tmp_path).done()
    assert again.returncode == 0 and _count(tmp_path, "begin") == begun
    assert not list((tmp_path / "logs" / "runs").glob("*.started.json"))


def test_a_failing_row_is_noted_and_the_others_are_measured(tmp_path: Path) -> None:
    done = _sweep(tmp_path, TTF_TEST_FAIL="2").done()
    assert done.returncode == 1, done.stderr
    assert len(_rows(tmp_path)) == FEW - 1
    assert _last(done) == f"{FEW - 1} of {FEW} rows are there; 1 failed"
    assert " ".join(done.stdout.split()).count(": the machine is on fire") == 1
    assert "Traceback" not in done.stderr
    (record,) = (tmp_path / "logs" / "runs").glob("*.failed.json")
    assert "on fire" in json.loads(record.read_text())["error"]
    again = _sweep(tmp_path).done()
    assert again.returncode == 0 and _last(again) == f"{FEW} of {FEW} rows are there"
    assert sorted(_count(tmp_path, "begin").values()) == [1] * (FEW - 1) + [2]
    assert not list((tmp_path / "logs" / "runs").glob("*.failed.json"))


def test_what_cannot_be_measured_is_listed_with_its_reason(tmp_path: Path) -> None:
    told = ["table=table6", "scale=paper", "--list", f"paths.logs={tmp_path}", f"paths.imagenet={tmp_path}/none"]
    done = Script("sweep", *told).done()
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == ROWS + 1 and all(line.startswith("no data  ttf eval ") for line in lines[:-1])
    assert lines[-1].startswith(f"0 of {ROWS} rows are there; {ROWS} no data (set paths.imagenet=ROOT")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("table=nonsense", "error: there is no table 'nonsense': choose one of "),
        ("table=table6 scale=huge", "error: table6 has no scale 'huge': choose one of tiny, mini, paper"),
    ],
)
def test_mistakes_end_with_one_line(given: str, said: str, tmp_path: Path) -> None:
    done = Script("sweep", *given.split(), f"paths.logs={tmp_path}").done()
    assert done.returncode == 2 and not done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith(said)


def test_a_repository_without_data_knows_and_redraws_its_table(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    for part in ("configs", "scripts", "results", "ttf"):
        shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
    listed = fresh("scripts/sweep.py", "table=table6", "--list", folder=copy)
    assert listed.returncode == 0, listed.stderr
    assert listed.stdout.splitlines()[-1] == "26 of 26 rows are there"
    drawn = fresh("scripts/sweep.py", "table=table6", "publish=true", folder=copy)
    assert drawn.returncode == 0 and drawn.stdout.splitlines()[-1] == "26 of 26 rows are there", drawn.stderr
    for file in (file for file in (ROOT / "results").rglob("*") if file.is_file()):
        assert (copy / file.relative_to(ROOT)).read_bytes() == file.read_bytes(), file
