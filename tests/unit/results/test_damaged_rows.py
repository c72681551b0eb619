"""Damaged, foreign and old files among the rows: one line each, and the rest is used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ttf.results.rows import Rows
from ttf.results.store import SCHEMA, Row, Store, signature
from ttf.tasks.identity import key_of

OUTCOMES = {"top1": torch.arange(40) % 3 == 0, "areas": torch.arange(480).view(40, 3, 4)}


def _row(seed: int) -> Row:
    config = {"schema": SCHEMA, "task": "cls", "seed": seed, "data": "d", "weights": "w"}
    called = [{"name": f"table6/{seed}", "overrides": [], "title": str(seed)}]
    return {
        "schema": SCHEMA,
        "id": signature(config),
        "key": key_of(config),
        "config": config,
        "experiments": called,
        "title": str(seed),
    }


def _outcomes(seed: int) -> dict[str, Tensor]:
    return {"top1": OUTCOMES["top1"], "areas": OUTCOMES["areas"] + seed}


@pytest.fixture
def drafts(tmp_path: Path) -> Store:
    store = Store(tmp_path / "runs")
    for seed in range(3):
        store.finish(_row(seed)["id"], _row(seed), _outcomes(seed))
    return store


@pytest.fixture
def published(tmp_path: Path, drafts: Store) -> Path:
    folder = tmp_path / "rows"
    assert Rows(folder, drafts.folder).publish("table6", {_row(s)["id"]: _row(s)["experiments"] for s in range(3)}) == [
        "table6"
    ]
    return folder


def _read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[Rows, list[str]]:
    """The rows, and the lines that reading them says."""
    capsys.readouterr()
    rows = Rows(tmp_path / "rows", tmp_path / "runs")
    return rows, capsys.readouterr().err.splitlines()


def _seeds(rows: Rows) -> list[int]:
    return sorted(row["config"]["seed"] for row in rows)


@pytest.mark.usefixtures("published")
def test_published_rows_are_the_drafts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file in (tmp_path / "runs").iterdir():
        file.unlink()
    rows, said = _read(tmp_path, capsys)
    assert _seeds(rows) == [0, 1, 2] and not said
    for row in rows:
        found = rows.outcomes(row)
        expected = _outcomes(row["config"]["seed"])
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[k], expected[k]) and found[k].dtype == expected[k].dtype for k in expected)


@pytest.mark.parametrize("damage", [b'{"schema": 2, "id"', b"[]", b'{"schema": 1, "outcomes": {}}', b"\xff\x00"])
def test_a_damaged_line_is_left_out(
    damage: bytes, published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in (tmp_path / "runs").iterdir():
        file.unlink()
    lines = (published / "table6.jsonl").read_bytes().splitlines()
    lost = json.loads(lines[1])["config"]["seed"]
    (published / "table6.jsonl").write_bytes(b"\n".join([lines[0], damage, lines[2]]) + b"\n")
    rows, said = _read(tmp_path, capsys)
    assert _seeds(rows) == sorted({0, 1, 2} - {lost})
    assert said == [f"left out: {published}/table6.jsonl line 2 is no row of schema {SCHEMA}"]
    assert all(rows.outcomes(row)["top1"].equal(OUTCOMES["top1"]) for row in rows)


@pytest.mark.usefixtures("drafts")
def test_a_damaged_line_does_not_hide_the_draft(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = published / "table6.jsonl"
    file.write_text("damaged\n" + "".join(file.read_text().splitlines(keepends=True)[1:]))
    rows, said = _read(tmp_path, capsys)
    assert _seeds(rows) == [0, 1, 2] and len(said) == 1
    lost = [row for row in rows if not rows.is_published(row)]
    assert len(lost) == 1 and rows.outcomes(lost[0])["top1"].equal(OUTCOMES["top1"])


def test_a_truncated_tensor_file_is_named(published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = published / "table6.safetensors"
    file.write_bytes(file.read_bytes()[:-40])
    rows, _ = _read(tmp_path, capsys)
    assert _seeds(rows) == [0, 1, 2]
    with pytest.raises(ValueError, match=r"table6\.safetensors cannot be read .*take it from the repository again"):
        rows.outcomes(next(iter(rows)))


def test_a_changed_tensor_is_noticed_and_the_others_are_used(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, row = published / "table6.safetensors", json.loads((published / "table6.jsonl").read_text().splitlines()[1])
    tensors = load_file(file)
    tensors[row["outcomes"]["areas"]["tensors"][0]] += 1
    save_file(tensors, file)
    rows, _ = _read(tmp_path, capsys)
    with pytest.raises(ValueError, match="^outcome areas is missing or damaged: take the file from the repository"):
        rows.outcomes(row)
    assert all(rows.outcomes(other) for other in rows if other["id"] != row["id"])


FILES: dict[str, tuple[str, Any]] = {
    "foreign": ("notes.json", {"shopping": ["milk"]}),
    "old": ("0123456789ab.json", {"id": "0123456789ab", "schema": 1, "config": {}}),
    "renamed": ("0123456789ab.json", _row(7)),
    "list": ("list.json", [1, 2]),
}


@pytest.mark.usefixtures("drafts")
@pytest.mark.parametrize("kind", FILES)
def test_other_files_among_the_drafts_are_named(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, content = FILES[kind]
    (tmp_path / "runs" / name).write_text(json.dumps(content))
    rows, said = _read(tmp_path, capsys)
    assert _seeds(rows) == [0, 1, 2]
    (line,) = said
    assert line.startswith(f"left out: {tmp_path}/runs/{name} is no row of ") and line.endswith(
        "remove it and run again"
    )


@pytest.mark.usefixtures("drafts")
def test_binary_files_among_the_drafts_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "runs" / "cut.json").write_bytes(b"\xff\xfe\x00{")
    rows, said = _read(tmp_path, capsys)
    assert _seeds(rows) == [0, 1, 2]
    assert len(said) == 1 and "cut.json is no row of results" in said[0]


def test_a_draft_whose_outcomes_are_cut_is_named(drafts: Store, tmp_path: Path) -> None:
    file = tmp_path / "runs" / f"{_row(1)['id']}.images.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    rows = Rows(tmp_path / "rows", drafts.folder)
    assert rows.outcomes(_row(0))["top1"].equal(OUTCOMES["top1"])
    with pytest.raises(ValueError, match=r"images\.safetensors cannot be read .*run again with force=true"):
        rows.outcomes(_row(1))
