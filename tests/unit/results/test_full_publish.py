"""A small disk that is full at any moment of a publication: no row that was finished is lost, and one line says it."""

from __future__ import annotations

import gc
import random
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from tests.scripts_under_test import ROOT, script
from tests.unit.results.small_disks import contents, small_disk
from ttf.results.rows import Rows
from ttf.results.store import SCHEMA, Row, Store, signature

KIB = 1024
DISK = 512  # KiB


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path, DISK) as place:
        yield place


def _row(seed: int) -> Row:
    config = {"schema": SCHEMA, "task": "cls", "seed": seed}
    return {"schema": SCHEMA, "id": signature(config), "key": "k", "config": config, "experiments": []}


def _wanted(count: int) -> dict[str, list[Row]]:
    return {_row(seed)["id"]: [{"name": f"t/{seed}", "overrides": [], "title": str(seed)}] for seed in range(count)}


def _found(rows: Path, drafts: Path) -> dict[int, float]:
    """The first outcome of every row that is there."""
    there = Rows(rows, drafts)
    return {row["config"]["seed"]: there.outcomes(row)["kl"][0].item() for row in there}


def _fill(disk: Path, free: int) -> None:
    """Leave so many KiB free."""
    (disk / "filler").unlink(missing_ok=True)
    used = subprocess.run(["du", "-sk", str(disk)], capture_output=True, text=True, check=True).stdout
    with suppress(OSError):
        (disk / "filler").write_bytes(bytes(max(0, DISK - int(used.split()[0]) - free) * KIB))


def _refusal(rows: Path, drafts: Path, count: int) -> str:
    try:
        Rows(rows, drafts).publish("t", _wanted(count))
    except ValueError as error:
        return str(error)
    return ""


def test_a_disk_that_is_full_at_any_moment(disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator, drafts, rows = torch.Generator().manual_seed(0), tmp_path / "runs", disk / "rows"
    for seed in range(12):
        kl = torch.rand(2000, generator=generator)
        kl[0] = seed
        Store(drafts).finish(_row(seed)["id"], _row(seed), {"kl": kl})
    first = tmp_path / "first"
    Rows(first, drafts).publish("t", _wanted(6))
    size, refused = sum(file.stat().st_size for file in first.iterdir()) // KIB, 0
    chosen = random.Random(0)
    for count, free in [(7 + chosen.randrange(6), chosen.randrange(2 * size)) for _ in range(16)]:
        shutil.rmtree(rows, ignore_errors=True)
        shutil.copytree(first, rows)
        _fill(disk, free)
        said = _refusal(rows, drafts, count)
        refused += bool(said)
        assert not said or (said.startswith("cannot write ") and str(rows) in said and "\n" not in said)
        published = _found(rows, tmp_path / "none")
        assert {seed: float(seed) for seed in range(6)}.items() <= published.items()
        assert len(published) in (6, count) and (said or len(published) == count)
        assert _found(rows, drafts) == {seed: float(seed) for seed in range(12)}
        assert sorted(file.name for file in rows.iterdir()) == ["t.jsonl", "t.safetensors"]
        (disk / "filler").unlink()
        gc.collect()  # files that are gone take space as long as something is mapped to them
        Rows(rows, drafts).publish("t", _wanted(count))
        assert _found(rows, tmp_path / "none") == {seed: float(seed) for seed in range(count)}
    assert 5 <= refused < 16 and not capsys.readouterr().err


def test_a_sweep_whose_results_do_not_fit(disk: Path, tmp_path: Path) -> None:
    """Its rows are drafts elsewhere: all of them stay, and with room again the same command publishes them."""
    published, drafts = Rows(ROOT / "results" / "rows", tmp_path / "none"), tmp_path / "logs" / "runs"
    rows = {row["id"]: row for row in published if any(one["name"].startswith("table7/") for one in row["experiments"])}
    for name, row in rows.items():
        plain = {key: value for key, value in row.items() if key not in ("outcomes", "digest")}
        Store(drafts).finish(name, plain, published.outcomes(row))
    told = [f"paths.logs={tmp_path}/logs", f"paths.results={disk}", f"paths.rows={disk}/rows"]
    before = contents(drafts)
    for free in (0, 12, 40):
        _fill(disk, free)
        done = script("sweep", "table=table7", "publish=true", *told)
        assert done.returncode == 2 and "Traceback" not in done.stderr, done
        assert done.stderr.splitlines()[-1].startswith("error: cannot write ") and str(disk) in done.stderr
        assert contents(drafts) == before and not list(Rows(disk / "rows", tmp_path / "none"))
    (disk / "filler").unlink()
    done = script("sweep", "table=table7", "publish=true", *told)
    assert done.returncode == 0 and f"{len(rows)} of {len(rows)} rows are there; published in table7" in done.stdout
    assert {row["id"] for row in Rows(disk / "rows", tmp_path / "none")} == set(rows)
