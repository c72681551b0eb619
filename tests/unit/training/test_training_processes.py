"""Two processes on one machine (gloo) against one."""

from __future__ import annotations

import torch
from safetensors.torch import load_file

from tests.scripts_under_test import ROOT, Python, ranks
from tests.unit.training.training_worker import main


def test_two_processes_give_the_weights_of_one(tmp_path):
    """Float64, where only the order of sums differs: 1.5e-15 seen after 8 steps, the learning rate being 1e-3.

    In float32 the same sums differ by 1e-7, which AdamW turns into whole steps where the true gradient is zero
    (biases of keys): that would compare the rounding, not the gradients.
    """
    worker = ["-m", "tests.unit.training.training_worker", str(tmp_path / "two"), "1"]
    both = [process.done() for process in [Python(*worker, folder=ROOT, **rank) for rank in ranks(2)]]
    assert [done.returncode for done in both] == [0, 0], both[0].stderr + both[1].stderr
    assert both[0].stdout.count("processes 2") == both[0].stdout.count("step 8") == 1
    assert not both[1].stdout  # only the main process speaks
    main(tmp_path / "one", 1)
    one, two = (load_file(tmp_path / name / "weights.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert max((one[key] - two[key]).abs().max() for key in one) < 1e-12
    logs = [(tmp_path / name / "log.csv").read_text().splitlines() for name in ("one", "two")]
    rows = [[line.rsplit(",", 1)[0] for line in log] for log in logs]  # without the seconds
    assert rows[0] == rows[1] and len(rows[0]) == 3
    assert one["head.weight"].dtype == torch.float64
