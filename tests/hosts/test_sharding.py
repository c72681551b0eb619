"""Compressed models under FSDP2 (``fully_shard`` on each block), FSDP 1 and DDP, in one process and in two."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("sharded_worker.py")


@pytest.mark.parametrize("world", [1, 2])
def test_sharded_models_equal_plain_ones(world: int, tmp_path: Path) -> None:
    commands = [[sys.executable, str(WORKER), str(rank), str(world), str(tmp_path / "meet")] for rank in range(world)]
    root = str(WORKER.parents[2])
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": root, "env": env}
    running = [subprocess.Popen(command, **pipes) for command in commands]
    for process in running:
        said, errors = process.communicate(timeout=300)
        assert process.returncode == 0, said + errors[-2000:]
        assert said.count("equal") == 12
