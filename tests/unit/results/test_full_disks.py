"""A disk that is full, or read-only, at any moment: one line, and what was there stays as it was."""

from __future__ import annotations

import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

import pytest
import torch
from matplotlib import pyplot as plt
from torch import nn

from tests.scripts_under_test import script
from tests.unit.results.small_disks import contents, small_disk
from ttf.data.files import append_lines
from ttf.data.questions import Question
from ttf.models.weights import save_weights
from ttf.report import figures
from ttf.results import costs
from ttf.results.claims import claim
from ttf.results.kept import write_kept, write_tensors
from ttf.results.rows import Rows
from ttf.results.store import SCHEMA, Store, signature, write_json
from ttf.searched import Searched, save
from ttf.searching.log import Measurements
from ttf.tasks.depth_maps import write_png
from ttf.tasks.vqa import Answers, Journal
from ttf.training.state import StateFolder

CONFIG = {"schema": SCHEMA, "task": "cls"}
ROW = {"schema": SCHEMA, "id": signature(CONFIG), "key": "k", "config": CONFIG, "experiments": []}
NUMBERS = count()
ASKED = [Question("1", "Is it so?", ("yes",), "pope")]


@contextmanager
def full(size: int = 16) -> Iterator[None]:
    """No file can grow beyond so many bytes, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def _claimed(folder: Path) -> None:
    with claim(folder / "x.claim") as held:
        assert held


def _figure(folder: Path) -> None:
    figure, _ = plt.subplots(figsize=(1, 1))
    try:
        figures.save(figure, folder / "x.png")
    finally:
        plt.close(figure)


def _publish(folder: Path) -> None:
    names = [{"name": "t/x", "overrides": [], "title": str(len(list(folder.iterdir())))}]
    Rows(folder, folder.with_name("runs")).publish("t", {ROW["id"]: names})


def _answers(folder: Path) -> Callable[[], None]:
    journal = Journal(folder, "x")
    return lambda: journal.add({next(NUMBERS): Answers(("yes",), 5)}, lambda _: ASKED)


def _log(folder: Path) -> Callable[[], object]:
    log = Measurements(folder / "x.log", {})
    return lambda: log.value((9, next(NUMBERS)), 0, lambda: [0.5])


WRITERS: dict[str, Callable[[Path], object]] = {
    "JSON": lambda f: write_json(f / "x.json", {"text": "a" * 40}),
    "a draft": lambda f: Store(f).finish(ROW["id"], ROW, {"top1": torch.ones(9) > 0}),
    "a note of a run": lambda f: Store(f).begin("x", {"text": "a" * 40}),
    "published rows": _publish,
    "tensors": lambda f: write_tensors(f / "x.safetensors", {"a": torch.zeros(9)}),
    "keys": lambda f: write_kept(f / "x.json", {"keys": {}}),
    "a schedule": lambda f: save(Searched((144, 90, 1), 144), f / "x.yaml", {}),
    "a checkpoint": lambda f: StateFolder(f).save({"w": torch.zeros(9)}),
    "weights": lambda f: save_weights(nn.Linear(4, 4), f / "x.safetensors"),
    "a table of costs": lambda f: costs.write([{"model": "a" * 40, "batch": 1}], f / "x.csv"),
    "a figure": _figure,
    "a depth map": lambda f: write_png(torch.rand(40, 40), f / "x.png"),
    "a claim": _claimed,
}
APPENDED: dict[str, Callable[[Path], Callable[[], object]]] = {
    "lines": lambda f: lambda: append_lines(f / "x.jsonl", ["a" * 40]),
    "answers": _answers,
    "a log of a search": _log,
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_leaves_what_was_there(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    Store(tmp_path / "runs").finish(ROW["id"], ROW, {"top1": torch.ones(9) > 0})
    for _ in range(2):  # nothing there, then an older file
        before = contents(folder)
        with full(), pytest.raises(ValueError) as caught:
            WRITERS[name](folder)
        assert "\n" not in str(caught.value) and str(folder) in str(caught.value)
        assert contents(folder) == before
        WRITERS[name](folder)


@pytest.mark.parametrize("name", APPENDED)
def test_a_full_disk_leaves_the_lines_before(name: str, tmp_path: Path) -> None:
    append = APPENDED[name](tmp_path)
    append()
    before = contents(tmp_path)
    for _ in range(2):
        with full(), pytest.raises(ValueError, match=f"cannot write {tmp_path}/.* space or choose another folder$"):
            append()
        after = contents(tmp_path)
        assert after.keys() == before.keys() and all(after[file].startswith(before[file]) for file in before)
    append()
    (text,) = contents(tmp_path).values()
    assert text.startswith(*before.values()) and text.endswith(b"\n")


def test_what_was_measured_is_kept_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs").write_text("a file where the folder goes")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(ValueError, match=r"cannot write .*; what was measured is in .*: move its files to .*/runs$"):
        Store(tmp_path / "runs").finish(ROW["id"], ROW, {"top1": torch.ones(9) > 0})
    (kept,) = tmp_path.glob("ttf-*")
    assert Store(kept).rows() == [ROW] and Store(kept).images(ROW["id"])["top1"].all()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path, 64) as place:
        yield place


COMMANDS = {
    "eval": "limit=4 throughput.batch_size=0",
    "sweep": "table=table6 scale=mini overrides=['limit=4']",
    "search": "budget=0.6 images=8 evaluations=2",
    "finetune": "experiment=mini/finetune",
}


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("how", ["full", "read-only"])
def test_commands_end_with_one_line(name: str, how: str, disk: Path) -> None:
    if how == "full":
        with suppress(OSError):
            (disk / "filler").write_bytes(bytes(1 << 20))
    else:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    done = script(name, *COMMANDS[name].split(), f"paths.logs={disk}/logs")
    assert done.returncode == 2, done
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: cannot ") and str(disk) in line
