"""Files that were damaged or changed after they were written: refused or left out in one line."""

from __future__ import annotations

import json
import resource
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ttf.data.questions import Question
from ttf.ops.native import build
from ttf.results.kept import kept, kept_tensors, write_kept, write_tensors
from ttf.results.packing import pack, unpack
from ttf.results.rows import Rows
from ttf.results.store import SCHEMA, Store, signature
from ttf.searched import Searched, load, save
from ttf.searching.log import Measurements
from ttf.tasks.identity import key_of
from ttf.tasks.vqa import Answers, Journal
from ttf.training.state import StateFolder

OUTCOMES = {"top1": torch.arange(40) % 3 == 0, "kl": torch.arange(40).float()}
CONFIG = {"schema": SCHEMA, "task": "cls", "seed": 0, "data": "d", "weights": "w"}
ROW = {
    "schema": SCHEMA,
    "id": signature(CONFIG),
    "key": key_of(CONFIG),
    "config": CONFIG,
    "metrics": {"top1": {"value": 87.25}},
    "experiments": [{"name": "table6/x", "overrides": [], "title": "x"}],
}
ASKED = [Question("1", "Is it so?", ("yes",), "pope")]
SCHEDULE = Searched((144, 144, 90, 60, 40, 1), 144)


@dataclass(frozen=True)
class Kind:
    """A kind of file: who writes it into a folder and says which one it is, and what comes back from the folder."""

    write: Callable[[Path], Path]
    read: Callable[[Path], Any]


def _draft(folder: Path) -> Store:
    store = Store(folder)
    store.finish(ROW["id"], ROW, OUTCOMES)
    return store


def _published(folder: Path) -> None:
    _draft(folder / "runs")
    Rows(folder / "rows", folder / "runs").publish("table6", {ROW["id"]: ROW["experiments"]})
    for file in (folder / "runs").iterdir():
        file.unlink()


def _packed_row(folder: Path) -> Any:
    rows = list(Rows(folder / "rows", folder / "runs"))
    return [{name: value for name, value in row.items() if name != "outcomes"} for row in rows] or None


def _plain(tensors: dict[str, Tensor] | None) -> Any:
    return None if tensors is None else {name: (str(value.dtype), value.tolist()) for name, value in tensors.items()}


def _packed_tensors(folder: Path) -> Any:
    rows = Rows(folder / "rows", folder / "runs")
    return [_plain(rows.outcomes(row)) for row in rows] or None


def _log(folder: Path) -> dict[Any, Any]:
    log = Measurements(folder / "x.log", {"weights": "w"})
    for counts in ((9, 5, 1), (9, 4, 2), (8, 4, 2)):
        log.value(counts, 0, lambda: [0.5, 0.25])
    return log.known


def _journal(folder: Path) -> dict[int, Answers]:
    journal = Journal(folder, "x")
    known = dict(journal.known)
    if not known:
        for image in range(3):
            journal.add({image: Answers((f"answer {image}",), 5)}, lambda _: ASKED)
    return known


def _state(folder: Path) -> Path:
    state = StateFolder(folder / "state")
    state.claim({"train": {"lr": 1}})
    state.save({"step": 7, "objective": {"w": torch.arange(50).float()}})
    return state.file


def _loaded_state(folder: Path) -> Any:
    content = StateFolder(folder / "state").load()
    assert content is not None
    return content["step"], content["objective"]["w"].tolist()


def _library(folder: Path) -> Path:
    content = bytes(range(256))
    (folder / "x.so").write_bytes(content + build._digest(content))
    return folder / "x.so"


def _checked_library(folder: Path) -> bytes:
    build.check(folder / "x.so")
    return (folder / "x.so").read_bytes()


def _then(write: Callable[[Path], object], name: str) -> Callable[[Path], Path]:
    def written(folder: Path) -> Path:
        write(folder)
        return folder / name

    return written


KINDS = {
    "a draft": Kind(_then(_draft, f"{ROW['id']}.json"), lambda f: Store(f).finished(ROW["id"])),
    "outcomes of a draft": Kind(
        _then(_draft, f"{ROW['id']}.images.safetensors"), lambda f: _plain(Store(f).images(ROW["id"]))
    ),
    "a published row": Kind(_then(_published, "rows/table6.jsonl"), _packed_row),
    "published outcomes": Kind(_then(_published, "rows/table6.safetensors"), _packed_tensors),
    "cached predictions": Kind(
        _then(lambda f: write_tensors(f / "base.safetensors", dict(OUTCOMES)), "base.safetensors"),
        lambda f: _plain(kept_tensors(f / "base.safetensors")),
    ),
    "cached keys": Kind(
        _then(lambda f: write_kept(f / "k.json", {"keys": {"a": ["0123456789ab"]}}), "k.json"),
        lambda f: kept(f / "k.json"),
    ),
    "a schedule": Kind(
        _then(lambda f: save(SCHEDULE, f / "x.yaml", {"model": "vit_mini", "budget": 0.5}), "x.yaml"),
        lambda f: load(f / "x.yaml", "vit_mini"),
    ),
    "a checkpoint of a training": Kind(_state, _loaded_state),
    "a compiled library": Kind(_library, _checked_library),
}
SEVERAL = {  # of files that grow, what is damaged is left out
    "a log of a search": Kind(_then(_log, "x.log"), lambda f: Measurements(f / "x.log", {"weights": "w"}).known),
    "a journal of answers": Kind(_then(_journal, "answers-x.jsonl"), _journal),
}


def _flipped(content: bytes, place: int, bit: int) -> bytes:
    changed = bytearray(content)
    changed[place % len(content)] ^= 1 << bit
    return bytes(changed)


def _cut(content: bytes, place: int, bit: int) -> bytes:
    return content[: place % len(content)]


def _digit(content: bytes, place: int, bit: int) -> bytes:
    """Another digit in the place of one, as somebody would change a number by hand."""
    digits = [number for number, byte in enumerate(content) if byte in b"0123456789"]
    if not digits:
        return _flipped(content, place, bit)
    changed, where = bytearray(content), digits[place % len(digits)]
    changed[where] = ord("0") + (changed[where] - ord("0") + 1 + bit) % 10
    return bytes(changed)


DAMAGES = {"flipped": _flipped, "cut": _cut, "digit": _digit}
damages = st.tuples(st.sampled_from(sorted(DAMAGES)), st.integers(0, 2**20), st.integers(0, 7))


def _damage(file: Path, how: tuple[str, int, int]) -> None:
    file.write_bytes(DAMAGES[how[0]](file.read_bytes(), *how[1:]))


def _tried(kind: Kind, folder: Path) -> tuple[Any, bool]:
    """What comes back, and whether it was refused, in one line that names a file."""
    try:
        return kind.read(folder), False
    except ValueError as error:
        said = str(error)
        return None, "\n" not in said and (str(folder) in said or "outcome" in said)


@pytest.mark.parametrize("name", KINDS)
def test_what_comes_back_is_what_was_written(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    kind = KINDS[name]
    whole = tmp_path_factory.mktemp("whole")
    file = kind.write(whole)
    content, expected = file.read_bytes(), kind.read(whole)
    assert expected is not None

    @settings(max_examples=20)
    @given(how=damages)
    def holds(how: tuple[str, int, int]) -> None:
        file.write_bytes(content)
        _damage(file, how)
        found, refused = _tried(kind, whole)
        assert refused or found is None or found == expected

    holds()


@pytest.mark.parametrize("name", SEVERAL)
def test_lines_that_were_changed_are_left_out(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    kind = SEVERAL[name]
    whole = tmp_path_factory.mktemp("whole")
    file = kind.write(whole)
    content, expected = file.read_bytes(), kind.read(whole)
    assert len(expected) == 3

    @settings(max_examples=20)
    @given(how=damages)
    def holds(how: tuple[str, int, int]) -> None:
        file.write_bytes(content)
        _damage(file, how)
        found, refused = _tried(kind, whole)  # the first bytes say whose file it is
        assert refused or found.items() <= expected.items()

    holds()


def test_a_line_behind_one_that_was_cut_off_is_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = SEVERAL["a journal of answers"].write(tmp_path)
    file.write_bytes(file.read_bytes()[:-9])
    journal = Journal(tmp_path, "x")
    assert set(journal.known) == {0, 1}
    assert capsys.readouterr().err == f"made anew: {file} line 3 was cut off or changed: asked again\n"
    journal.add({2: Answers(("answer 2",), 5)}, lambda _: ASKED)
    assert set(Journal(tmp_path, "x").known) == {0, 1, 2}


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "a metric": lambda row: row["metrics"]["top1"].update(value=91.0),
    "a setting": lambda row: row["config"].update(seed=1),
    "its key": lambda row: row.update(key="0123456789ab"),
    "its costs": lambda row: row.update(gmacs=0.1),
    "its name": lambda row: row["experiments"][0].update(name="table6/y"),
    "its schema": lambda row: row.update(schema=3),
    "its digest": lambda row: row.update(digest="0123456789ab"),
    "that it had a digest": lambda row: row.pop("digest"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_row_that_was_edited_is_left_out_in_one_line(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _draft(tmp_path / "runs")
    _published(tmp_path / "published")
    for file in (tmp_path / "runs" / f"{ROW['id']}.json", tmp_path / "published" / "rows" / "table6.jsonl"):
        row = json.loads(file.read_text())
        CHANGES[what](row)
        file.write_text(json.dumps(row))
    capsys.readouterr()
    assert not list(Rows(tmp_path / "rows", tmp_path / "runs"))
    assert not list(Rows(tmp_path / "published" / "rows", tmp_path / "none"))
    said = capsys.readouterr().err.splitlines()
    reason = "is no row of schema 2" if what == "its schema" else "was changed after it was written"
    assert len(said) == 2 and all(line.startswith("left out: ") and reason in line for line in said)


def test_outcomes_take_no_more_room_than_their_row_says() -> None:
    said, stored = pack({"kl": torch.zeros(40)})
    (name,) = stored
    stored[name] = torch.frombuffer(bytearray(zlib.compress(bytes(32 << 20))), dtype=torch.uint8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match="outcome kl is missing or damaged"):
        unpack(said, stored)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16 << 10  # KiB


def test_a_schedule_of_another_model_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    save(SCHEDULE, file, {"model": "deit_ti"})
    with pytest.raises(ValueError, match="was searched for deit_ti, not for vit_mini: .* schedule.model=deit_ti"):
        load(file, "vit_mini")
    file.write_text(file.read_text().replace("90", "80"))
    with pytest.raises(ValueError, match="was changed after the search: .* remove its line digest if you mean it"):
        load(file)
    file.write_text("".join(line for line in file.read_text().splitlines(True) if not line.startswith("digest")))
    assert load(file).counts[2] == 80


def test_nothing_of_a_damaged_table_is_lost_by_publishing(tmp_path: Path) -> None:
    _published(tmp_path)
    _draft(tmp_path / "runs")
    lines = tmp_path / "rows" / "table6.jsonl"
    lines.write_text(lines.read_text()[:-30])
    with pytest.raises(ValueError, match="damaged lines, which would be lost: take it from the repository again"):
        Rows(tmp_path / "rows", tmp_path / "runs").publish("table6", {ROW["id"]: ROW["experiments"]})
