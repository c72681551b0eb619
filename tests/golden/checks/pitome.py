"""PiToMe against its official operators, blocks and schedules."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.golden import margins
from tests.golden.blocks import TOKEN, WEIGHT, Case, run_block
from tests.golden.checks.tome import _plain
from ttf.methods.base import LayerView
from ttf.methods.pitome import PiToMe, energy
from ttf.ops.bipartite import cosines
from ttf.ops.reduction import AssignmentReduction, gather_tokens
from ttf.schedule import RemoveShare


def _method(margin: float, bsm: bool, alpha: float = 1.0) -> PiToMe:
    """The method whose block 0 has that margin and matching."""
    return PiToMe(margin=margin, unprotected="all" if bsm else "none", alpha=alpha)


def _clear(metric: Tensor, prefix: int, r: int, margin: float, bsm: bool, alpha: float) -> None:
    """The order of the energies, and who merges with whom."""
    between = margins.cosines(metric[:, prefix:], metric[:, prefix:])
    energies = F.elu(between - margin, alpha).mean(2)
    order = energies.argsort(dim=1, descending=True)
    taking_part = order if bsm else order[:, : 2 * r]
    margins.assert_clear(margins.order(energies), margins.COSINE)
    moved = gather_tokens(metric[:, prefix:], taking_part)
    margins.assert_clear(margins.matching(moved, r, 0), margins.COSINE)


def _check(case: Case, reduction: AssignmentReduction, x: Tensor, names: tuple[str, ...] = ("W", "source")) -> None:
    assert torch.equal((reduction.matrix() > 0).float(), case[names[1]])
    torch.testing.assert_close(reduction.matrix(), case[names[0]], **WEIGHT)


def op(case: Case) -> None:
    settings, x, metric = case.settings, case["x"], case["metric"]
    prefix, tokens = int(settings["class_token"]), x.shape[1]
    rule = (settings["margin"], settings["bsm"], settings["alpha"])
    assert tokens - prefix - RemoveShare(settings["ratio"]).kept(0, tokens - prefix) == settings["r"]
    torch.testing.assert_close(case["keys"].mean(dim=1), metric, **WEIGHT)
    _clear(metric, prefix, settings["r"], *rule)
    patches = metric[:, prefix:]
    energies = energy(cosines(patches, patches), settings["margin"], settings["alpha"])
    torch.testing.assert_close(energies, case["energy"], **WEIGHT)
    assert torch.equal(energies.argsort(dim=1, descending=True), case["order"])
    view = LayerView(x, prefix, sizes=case["size_in"].squeeze(-1), keys=metric)
    reduction = _method(*rule).reduce(view, tokens - settings["r"])
    _check(case, reduction, x)
    assert torch.equal(reduction.kept, case["row_idx"])
    torch.testing.assert_close(reduction.sizes, case["size_out"].squeeze(-1), **WEIGHT)
    torch.testing.assert_close(reduction.down(x), case["y_wavg"], **TOKEN)
    torch.testing.assert_close(_plain(reduction.index, len(case["y_mean"][0]), True).down(x), case["y_mean"], **TOKEN)
    torch.testing.assert_close(gather_tokens(x, reduction.kept), case["y_prune"], **TOKEN)


def two(case: Case) -> None:
    settings, prefix, sizes, total = case.settings, int(case.settings["class_token"]), None, None
    for step, x in ((1, case["x"]), (2, case["x_before2"])):
        rule = (settings[f"margin{step}"], settings[f"bsm{step}"])
        keep = prefix + RemoveShare(settings[f"ratio{step}"]).kept(0, x.shape[1] - prefix)
        _clear(case[f"metric{step}"], prefix, x.shape[1] - keep, *rule, 1.0)
        view = LayerView(x, prefix, sizes=sizes, keys=case[f"metric{step}"])
        reduction = _method(*rule).reduce(view, keep)
        matrix, sizes = reduction.matrix(), reduction.sizes
        total = matrix if total is None else matrix @ total
        assert torch.equal((total > 0).float(), case[f"source{step}"])
        torch.testing.assert_close(matrix, case[f"W{step}"], **WEIGHT)
        torch.testing.assert_close(sizes, case[f"size{step}"].squeeze(-1), **WEIGHT)
        torch.testing.assert_close(reduction.down(x), case[f"y{step}"], **TOKEN)
    torch.testing.assert_close(total, case["W21"], **WEIGHT)


def block(case: Case) -> None:
    settings, sizes = case.settings, case["size_in"].squeeze(-1)
    assert not settings["prop_attn"]
    rule = (settings["margin"], settings["bsm"])
    _clear(case["metric"], 1, settings["r"], *rule, 1.0)
    view, reduction, reduced, out = run_block(case, _method(*rule), settings["N"] - settings["r"], sizes)
    torch.testing.assert_close(view.x - case["x_in"], case["attn_out"], **TOKEN)
    torch.testing.assert_close(view.x, case["x_attn"], **TOKEN)
    torch.testing.assert_close(view.keys, case["metric"], **TOKEN)
    _check(case, reduction, view.x)
    assert torch.equal(reduction.kept, case["row_idx"])
    torch.testing.assert_close(reduction.sizes, case["size_out"].squeeze(-1), **WEIGHT)
    torch.testing.assert_close(reduced, case["reduced"], **TOKEN)
    torch.testing.assert_close(out, case["x_out"], **TOKEN)


def sched(case: Case) -> None:
    """How many tokens go in each block, and each block's margin and matching."""
    settings, n = case.settings, case.settings["patches"]
    half = {"deit": "first", "mae": "last"}[settings["family"]]
    method, schedule, depth = PiToMe(unprotected=half), RemoveShare(settings["ratio"]), settings["layers"]
    for layer in range(depth):
        left = schedule.kept(layer, n)
        assert n - left == case["per_layer"][layer]
        assert abs(method.margin_of(layer, depth) - float(case["margins"][layer])) < 1e-6
        assert method.protects(layer, depth) != bool(case["bsm"][layer])
        n = left


CHECKS = {"op": op, "two": two, "block": block, "sched": sched}
