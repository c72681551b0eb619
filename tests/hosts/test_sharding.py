"""Compressed models under FSDP2 (``fully_shard`` on each block), FSDP 1 and DDP, in one process and in two."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from tests.hosts.sharded_worker import told
from tests.scripts_under_test import IMPORTED


@pytest.mark.parametrize("world", [1, 2])
def test_sharded_models_equal_plain_ones(world: int, tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")  # processes that have imported torch
    context.set_forkserver_preload(IMPORTED)
    said = [tmp_path / f"said{rank}" for rank in range(world)]
    meet = str(tmp_path / "meet")
    running = [context.Process(target=told, args=(rank, world, meet, str(said[rank]))) for rank in range(world)]
    for process in running:
        process.start()
    for process, file in zip(running, said, strict=True):
        process.join(300)
        assert process.exitcode == 0, file.read_text()
        assert file.read_text().count("equal") == 12
