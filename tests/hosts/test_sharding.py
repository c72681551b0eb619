"""Compressed models under FSDP2 (``fully_shard`` on each block), FSDP 1 and DDP, in one process and in two."""

from __future__ import annotations

import pytest

from tests.scripts_under_test import ROOT, Python, ranks


@pytest.mark.parametrize("world", [1, 2])
def test_sharded_models_equal_plain_ones(world: int) -> None:
    running = [Python("-m", "tests.hosts.sharded_worker", folder=ROOT, **rank) for rank in ranks(world)]
    for process in running:
        done = process.done()
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count("equal") == 12
