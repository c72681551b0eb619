"""Two processes on one machine (gloo) against one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.unit.training.training_worker import main

ROOT = Path(__file__).parents[3]


def test_two_processes_give_the_weights_of_one(tmp_path):
    """Float64, where only the order of sums differs: 1.5e-15 seen after 8 steps, the learning rate being 1e-3.

    In float32 the same sums differ by 1e-7, which AdamW turns into whole steps where the true gradient is zero
    (biases of keys): that would compare the rounding, not the gradients.
    """
    worker = [str(ROOT / "tests" / "unit" / "training" / "training_worker.py"), str(tmp_path / "two"), "1"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *worker]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(launch, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("processes 2") == done.stdout.count("step 8") == 1  # only the main process speaks
    main(tmp_path / "one", 1)
    one, two = (load_file(tmp_path / name / "weights.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert max((one[key] - two[key]).abs().max() for key in one) < 1e-12
    logs = [(tmp_path / name / "log.csv").read_text().splitlines() for name in ("one", "two")]
    rows = [[line.rsplit(",", 1)[0] for line in log] for log in logs]  # without the seconds
    assert rows[0] == rows[1] and len(rows[0]) == 3
    assert one["head.weight"].dtype == torch.float64
