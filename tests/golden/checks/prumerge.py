"""PruMerge and PruMerge+ against the official functions, which know a grid of 576 patches alone."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.golden import margins
from tests.golden.blocks import TOKEN, WEIGHT, Case
from ttf.methods import LayerView
from ttf.methods.prumerge import (
    PruMerge,
    class_attention,
    dropped_mask,
    grid_positions,
    kept_positions,
    merge_weights,
    outlier_ratio,
    without_repeats,
)


def _clear(case: Case) -> None:
    """The order of the kept patches, the bound of the outliers, and the neighbours of every kept patch."""
    attention, settings = case["cls_attn"].double(), case.settings
    margins.assert_clear(margins.order(attention.log(), settings["topk_count"]), margins.SCORE)
    if settings["if_adaptive"]:
        low, high = torch.quantile(attention, attention.new_tensor([0.25, 0.75]))
        margins.assert_clear((attention / (high + 1.5 * (high - low))).log().abs(), margins.SCORE)
    for keys, kept, dropped in zip(case["k"][:, 1:], case["kept_idx"], case["dropped_idx"], strict=True):
        others = torch.cat((kept, dropped))
        similar = margins.cosines(keys[None, kept], keys[None, others])[0].fill_diagonal_(-2.0)
        margins.assert_clear(_neighbour_gaps(similar, settings["neighbours"]), margins.COSINE)


def _neighbour_gaps(similar: Tensor, count: int) -> Tensor:
    """Gaps below the ``count`` highest of every row; two entries that are one patch are the same neighbour."""
    steps = -similar.sort(dim=1, descending=True).values.diff(dim=1)[:, count - 2 : count + 1]
    return torch.where(steps[:, 1] > 1e-12, steps[:, 1], steps[:, ::2].amin(dim=1))


def _kept(case: Case, attention: Tensor) -> Tensor:
    settings, n = case.settings, attention.shape[1]
    plus, outliers = settings["variant"] == "plus", settings["if_adaptive"]
    ratio = outlier_ratio(attention) if outliers else settings["reduction_ratio"]
    assert abs(ratio - settings["effective_ratio"]) < 1e-9
    count = int(n * ratio)
    assert count == settings["topk_count"]
    kept = kept_positions(attention, count, grid_positions(n, ratio, outliers) if plus else range(0))
    return without_repeats(kept)[0] if plus and outliers else kept


def _through_view(case: Case) -> None:
    """The method itself, wherever the case has as many tokens as some ``keep`` gives."""
    settings = case.settings
    method = PruMerge(settings["variant"] == "plus", settings["if_adaptive"], settings["neighbours"])
    view = LayerView(case["features"], 1, class_query=case["q"][:, 0], flat_keys=case["k"])
    keep = settings["n_patches"] if method.adaptive else settings["kept"] + 2
    reduction = method.reduce(view, keep)
    assert reduction.weights.shape[1] == settings["kept"] + 2
    torch.testing.assert_close(reduction.matrix()[:, 1:, 1:], case["W"], **WEIGHT)
    torch.testing.assert_close(reduction.down(view.x)[:, 1:], case["y"], **TOKEN)
    torch.testing.assert_close(reduction.down(view.x)[:, :1], view.x[:, :1], **TOKEN)
    assert torch.equal(reduction.kept[:, 1:] - 1, case["kept_idx"])


def case(case: Case) -> None:
    settings = case.settings
    _clear(case)
    attention = class_attention(case["q"][:, 0], case["k"])
    torch.testing.assert_close(attention, case["cls_attn"], **WEIGHT)
    kept = _kept(case, attention)
    assert kept.shape[1] == settings["kept"]
    assert torch.equal(kept, case["kept_idx"])
    repeats = sum(len(row) - len(row.unique()) for row in kept)
    assert repeats == settings["duplicate_kept"]
    dropped = dropped_mask(kept, attention.shape[1])
    for mask, expected in zip(dropped, case["dropped_idx"], strict=True):
        assert torch.equal(mask.nonzero().flatten(), expected)
    weights = merge_weights(attention, case["k"][:, 1:], kept, dropped, settings["neighbours"])
    torch.testing.assert_close(weights, case["W"], **WEIGHT)
    torch.testing.assert_close(weights @ case["features"][:, 1:], case["y"], **TOKEN)
    _through_view(case)


CHECKS = {"case": case}
