"""A publication that is interrupted between any two files: every row has its outcomes, and the same again is whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ttf.data.files import atomic_write
from ttf.results import rows as published
from ttf.results.rows import Rows
from ttf.results.store import SCHEMA, Row, Store, signature

Write = Callable[[Path], object]


def _row(seed: int, **more: object) -> Row:
    config = {"schema": SCHEMA, "task": "cls", "seed": seed}
    return {"schema": SCHEMA, "id": signature(config), "key": "k", "config": config, "experiments": [], **more}


def _names(seed: int) -> list[Row]:
    return [{"name": f"t/{seed}", "overrides": [], "title": str(seed)}]


def _outcomes(value: int) -> dict[str, Tensor]:
    return {"kl": torch.arange(50).float() + value}


def _begin(folder: Path) -> Callable[[], list[str]]:
    """A published row, measured again with another outcome, and a new one; gives their publication."""
    store, wanted = Store(folder / "runs"), {_row(seed)["id"]: _names(seed) for seed in range(2)}
    store.finish(_row(0)["id"], _row(0), _outcomes(0))
    Rows(folder / "rows", folder / "runs").publish("t", {_row(0)["id"]: _names(0)})
    store.finish(_row(0)["id"], _row(0, note="again"), _outcomes(7))
    store.finish(_row(1)["id"], _row(1), _outcomes(3))
    return lambda: Rows(folder / "rows", folder / "runs").publish("t", wanted, again=True)


def _stopping(at: int, done: list[Path]) -> Callable[[Path, Write], None]:
    def write(path: Path, fill: Write) -> None:
        if len(done) == at:
            raise KeyboardInterrupt
        done.append(path)
        atomic_write(path, fill)

    return write


def test_a_publication_may_be_interrupted_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _begin(tmp_path / "whole")()
    files = sorted((tmp_path / "whole" / "rows").iterdir())
    writes = 3  # new tensors beside old ones, the rows, and new tensors alone
    for at in range(writes + 1):
        folder, done = tmp_path / str(at), list[Path]()
        publish = _begin(folder)
        monkeypatch.setattr(published, "atomic_write", _stopping(at, done))
        if at < writes:
            with pytest.raises(KeyboardInterrupt):
                publish()
        else:
            publish()
        monkeypatch.setattr(published, "atomic_write", atomic_write)
        there = Rows(folder / "rows", folder / "none")
        found = {row["config"]["seed"]: there.outcomes(row)["kl"][0].item() for row in there}
        assert found == ({0: 0} if at < 2 else {0: 7, 1: 3})
        publish()
        assert [file.read_bytes() for file in sorted((folder / "rows").iterdir())] == [f.read_bytes() for f in files]
