"""An evaluation by two processes (gloo) is that of one: every bit of the outcomes, one row, one table."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.scripts_under_test import Done, Script, python, ranks

GIVEN = {
    "cls": ["ratio=0.5", "limit=60", "batch_size=7"],
    "seg": ["task=seg", "model=segmenter_mini", "ratio=0.5", "limit=13"],
}
LAUNCH = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def _arguments(task: str, folder: Path) -> list[str]:
    return [*GIVEN[task], "throughput.batch_size=0", f"paths.logs={folder}", f"paths.results={folder}/results"]


def _both(task: str, folder: Path) -> list[Done]:
    """What torchrun does, from processes that have imported torch."""
    runs = [Script("eval", *_arguments(task, folder), **rank) for rank in ranks(2)]
    return [run.done() for run in runs]


def _row(folder: Path) -> tuple[dict, dict[str, Tensor]]:
    (file,) = (f for f in (folder / "runs").glob("*.json"))
    (images,) = (folder / "runs").glob("*.safetensors")
    return json.loads(file.read_text()), load_file(images)


def _same(one: Path, two: Path) -> None:
    (a, images_a), (b, images_b) = _row(one), _row(two)
    assert images_a.keys() == images_b.keys()
    assert all(torch.equal(images_a[name], images_b[name]) for name in images_a)
    same = ("id", "key", "config", "metrics", "gmacs", "images", "tokens", "bad_images")
    assert {name: a[name] for name in same} == {name: b[name] for name in same}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Where the row of one process is."""

    @cache
    def run(task: str) -> Path:
        folder = tmp_path_factory.mktemp(task)
        done = Script("eval", *_arguments(task, folder)).done()
        assert done.returncode == 0, done.stderr
        return folder

    return run


@pytest.mark.parametrize("task", GIVEN)
def test_two_processes_give_the_row_of_one(task: str, alone: Callable[[str], Path], tmp_path: Path) -> None:
    both = _both(task, tmp_path / "two")
    assert [done.returncode for done in both] == [0, 0], both[0].stderr + both[1].stderr
    assert "GMACs" in both[0].stdout and not both[1].stdout  # the main process alone speaks
    _same(alone(task), tmp_path / "two")
    again = _both(task, tmp_path / "two")
    assert [done.returncode for done in again] == [0, 0] and "has finished before" in again[0].stderr


def test_torchrun(alone: Callable[[str], Path], tmp_path: Path) -> None:
    done = python(*LAUNCH, "scripts/eval.py", *_arguments("cls", tmp_path / "two"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("GMACs") == 1
    _same(alone("cls"), tmp_path / "two")
