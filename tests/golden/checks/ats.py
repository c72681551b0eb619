"""The adaptive token sampler against the official one."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from tests.golden import margins
from tests.golden.blocks import TOKEN, WEIGHT, Case
from ttf.methods import LayerView
from ttf.methods.ats import ATS, normalised_cdf, sampling_levels
from ttf.ops.attention import side_by_side
from ttf.ops.scores import value_weighted_scores


def _view(case: Case) -> LayerView:
    norms = side_by_side(case["v"]).norm(dim=-1)
    return LayerView(case["raw_x"], 1, scores=case["attn"][:, :, 0].mean(1), value_norms=norms)


def _clear(case: Case) -> None:
    """The order of the scores, and which entry is nearest to each level."""
    cdf, levels = case["normalized_cdf"].double(), case["ys"].double()
    skipped = max(0, cdf.shape[1] - levels.shape[1])
    margins.assert_clear(margins.order(case["sorted_scores"].double().log()), margins.SCORE)
    margins.assert_clear(margins.runner_up(-(levels.unsqueeze(2) - cdf[:, None, skipped:]).abs()), margins.SHARE)


def _sampling(case: Case, view: LayerView) -> None:
    scores = value_weighted_scores(view.scores, view.value_norms, view.prefix)
    ascending, order = scores.sort(dim=1)
    assert torch.equal(order, case["sorted_indices"])
    torch.testing.assert_close(ascending, case["sorted_scores"], **WEIGHT)
    cdf = normalised_cdf(ascending)
    torch.testing.assert_close(cdf, case["normalized_cdf"], **WEIGHT)
    torch.testing.assert_close(sampling_levels(cdf, case.settings["n_ref_tokens"] - 1), case["ys"], **WEIGHT)


def _reduction(case: Case, view: LayerView, trim: bool) -> None:
    """What a layer selects, padded as the official code does it with (``trim``) and without dropping tokens."""
    settings = case.settings
    reduction = ATS(settings["n_ref_tokens"], trim).reduce(view, min(settings["n_ref_tokens"], settings["N"] - 1))
    length = max(settings["kept_per_image"]) if trim else settings["n_tokens"]
    sizes, matrix = reduction.sizes, reduction.matrix()
    assert matrix.shape == (sizes.shape[0], length, settings["N"]) and sizes.shape[1] == length
    assert sizes.sum(1).tolist() == settings["kept_per_image"]
    assert torch.equal(sizes, case["policy_full"][:, :length, 0])
    assert torch.equal(reduction.kept.masked_fill(sizes == 0, -1), case["selected_ids"][:, :length])
    assert (case["selected_ids"][:, length:] == -1).all()
    assert torch.equal(reduction.down(case["raw_x"]), case["selected_x_full"][:, :length])
    rows = matrix.unsqueeze(1) @ case["attn"]
    torch.testing.assert_close(rows, case["attn_selected"][:, :, :length], **WEIGHT)
    if trim == settings["drop_tokens"]:
        assert torch.equal(sizes.unsqueeze(-1), case["policy"])
        assert torch.equal(reduction.down(case["raw_x"]), case["selected_x"])
        weights, out = case.group("weights"), side_by_side(case["attn"] @ case["v"])
        out = F.linear(reduction.down(out), weights["proj.weight"], weights["proj.bias"])
        torch.testing.assert_close(out * sizes.unsqueeze(-1), case["out"], **TOKEN)


def case(case: Case) -> None:
    view = _view(case)
    _clear(case)
    _sampling(case, view)
    for trim in (True, False):
        _reduction(case, view, trim)


CHECKS = {"case": case}
