"""PPT against its official blocks."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tests.golden import margins
from tests.golden.blocks import TOKEN, WEIGHT, Case, run_block
from ttf.methods.base import LayerView
from ttf.methods.ppt import PPT
from ttf.ops.attention import column_sums, mapped_attention, side_by_side, size_bias
from ttf.ops.reduction import AssignmentReduction
from ttf.ops.scores import value_weighted_scores


def _layer(case: Case) -> LayerView:
    """What a host would say of the layer, from the stored queries, keys and values."""
    q, k, v, sizes = case["q"], case["k"], case["v"], case["size_in"].squeeze(-1)
    _, attention = mapped_attention(q, k, v, size_bias(sizes, q.dtype), q.shape[-1] ** -0.5)
    torch.testing.assert_close(attention, case["attn"], **WEIGHT)
    torch.testing.assert_close(k.mean(dim=1), case["metric"], **WEIGHT)
    row, norms = column_sums(attention, "class", 1), side_by_side(v).norm(dim=-1)
    return LayerView(case["x_attn"], 1, sizes=sizes, scores=row, keys=k.mean(dim=1), value_norms=norms)


def _check_scores(case: Case, view: LayerView, threshold: float) -> Tensor:
    """Which images are pooled, (B,)."""
    scores = value_weighted_scores(view.scores, view.value_norms, view.prefix)
    variance = scores.var(dim=1)
    torch.testing.assert_close(scores, case["scores"][:, 1:], **WEIGHT)
    torch.testing.assert_close(variance, case["variance"], **WEIGHT)
    assert torch.equal(variance < threshold, case["pooled_branch"])
    return case["pooled_branch"]


def _clear(case: Case, keep: int) -> None:
    """The branch of every image, the matching of pooled ones, and the order of what stays of pruned ones."""
    pooled, threshold = case["pooled_branch"], max(case.settings["threshold"], 1e-30)
    scores, r = case["scores"][:, 1:].double(), case.settings["N"] - keep
    margins.assert_clear((scores.var(dim=1).log() - math.log(threshold)).abs(), margins.SCORE)
    r = min(r, scores.shape[1] // 2)
    margins.assert_clear(margins.matching(case["metric"][pooled], r, 1), margins.COSINE)
    margins.assert_clear(margins.order(scores[~pooled].log(), scores.shape[1] - r), margins.SCORE)


def _check_sizes(case: Case, reduction: AssignmentReduction, pooled: Tensor, sizes: Tensor) -> None:
    torch.testing.assert_close(reduction.sizes, case["size_out"].squeeze(-1), **WEIGHT)
    torch.testing.assert_close(reduction.matrix().sum(-1), torch.ones_like(reduction.sizes), **WEIGHT)
    assert bool((reduction.index[pooled] >= 0).all())
    order = case["scores"][~pooled].argsort(dim=1, descending=True)[:, : reduction.sizes.shape[1]]
    assert torch.equal(reduction.kept[~pooled], order)
    assert torch.equal(reduction.sizes[~pooled], sizes[~pooled].gather(1, order))


def case(case: Case) -> None:
    settings = case.settings
    view, keep = _layer(case), settings["N"] - settings["r"]
    _clear(case, keep)
    pooled = _check_scores(case, view, settings["threshold"])
    named = PPT(settings["threshold"], settings["mode"])
    assert settings["mode"] == "mixed" or bool((pooled == (settings["mode"] == "pool")).all())
    for method in (named, PPT(settings["threshold"])):
        reduction = method.reduce(view, keep)
        _check_sizes(case, reduction, pooled, view.sizes)
        torch.testing.assert_close(reduction.down(view.x), case["reduced"], **TOKEN)
        hosted, reduction, reduced, out = run_block(case, method, keep, view.sizes)
        _check_sizes(case, reduction, pooled, view.sizes)
        torch.testing.assert_close(hosted.x, case["x_attn"], **TOKEN)
        torch.testing.assert_close(reduced, case["reduced"], **TOKEN)
        torch.testing.assert_close(out, case["x_out"], **TOKEN)


CHECKS = {"case": case}
