"""ToFu against the port in PiToMe's repository: operators, blocks and schedules."""

from __future__ import annotations

import torch

from tests.golden import margins
from tests.golden.blocks import TOKEN, WEIGHT, Case, run_block
from ttf.methods.base import LayerView
from ttf.methods.tofu import ToFu
from ttf.ops.reduction import AssignmentReduction
from ttf.schedule import RemoveShare

MODES = {"prune": "prune", "mean": "mean", "tofu": "longest"}


def _check(case: Case, reduction: AssignmentReduction, view: LayerView, keep: int) -> None:
    assert torch.equal(reduction.kept, case["row_idx"])
    groups = ToFu("mean").reduce(view, keep)  # whom pruned tokens would have joined is told, too
    assert torch.equal((groups.matrix() > 0).float(), case["source"])
    torch.testing.assert_close(reduction.matrix(), case["W"], **WEIGHT)


def _keep(case: Case, tokens: int, prefix: int) -> int:
    """The number of tokens, after a look at how the official one comes about."""
    keep = prefix + RemoveShare(case.settings["ratio"], counted=prefix).kept(0, tokens - prefix)
    assert keep == tokens - case.settings["r"]
    return keep


def op(case: Case) -> None:
    settings, x = case.settings, case["x"]
    prefix = int(settings["class_token"])
    torch.testing.assert_close(case["keys"].mean(dim=1), case["metric"], **WEIGHT)
    margins.assert_clear(margins.matching(case["metric"], settings["r"], prefix), margins.COSINE)
    method = ToFu(MODES[settings["mode"]])
    view, keep = LayerView(x, prefix, keys=case["metric"]), _keep(case, x.shape[1], prefix)
    reduction = method.reduce(view, keep)
    _check(case, reduction, view, keep)
    assert not method.scaling and bool((reduction.sizes == 1).all())
    torch.testing.assert_close(reduction.down(x), case["y"], **TOKEN)


def block(case: Case) -> None:
    settings, keep = case.settings, _keep(case, case.settings["N"], 1)
    margins.assert_clear(margins.matching(case["metric"], settings["r"], 1), margins.COSINE)
    view, reduction, reduced, out = run_block(case, ToFu(MODES[settings["mode"]]), keep)
    torch.testing.assert_close(view.x - case["x_in"], case["attn_out"], **TOKEN)
    torch.testing.assert_close(view.keys, case["metric"], **TOKEN)
    _check(case, reduction, view, keep)
    torch.testing.assert_close(reduced, case["reduced"], **TOKEN)
    torch.testing.assert_close(out, case["x_out"], **TOKEN)


def sched(case: Case) -> None:
    settings, n = case.settings, case.settings["patches"]
    method, schedule, depth = ToFu(), RemoveShare(settings["ratio"], counted=1), settings["layers"]
    for layer in range(depth):
        left = schedule.kept(layer, n)
        assert n - left == case["per_layer"][layer]
        assert (method.mode_of(layer, depth) != "prune") == bool(case["merges"][layer])
        n = left


CHECKS = {"op": op, "block": block, "sched": sched}
