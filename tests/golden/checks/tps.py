"""The squeezing step of TPS against the official module."""

from __future__ import annotations

import torch

from tests.golden import margins
from tests.golden.blocks import TOKEN, WEIGHT, Case
from ttf.methods import LayerView
from ttf.methods.tps import TPS, host_similarity, squeeze, squeezing_weights
from ttf.ops.reduction import gather_tokens


def _clear(case: Case) -> None:
    """The order of the scores, which are given, and the host of every pruned token."""
    margins.assert_clear(margins.order(case["score"].double()), 0.0)
    if not case.settings["exact_ties"]:  # those are exact in float32 too, whatever the order of the sums
        scale = 1.0 if case.settings["l2_norm"] else case["cos_sim"].abs().amax()
        margins.assert_clear(margins.runner_up(case["cos_sim"].double()), margins.COSINE * scale)


def case(case: Case) -> None:
    settings, x, score = case.settings, case["x"], case["score"]
    m, temperature, normalise = settings["M"], settings["temperature"], settings["l2_norm"]
    _clear(case)
    weights, order = squeeze(score, x, m, temperature, normalise)
    assert torch.equal(order[:, :m], case["kept_idx"])
    assert torch.equal(order[:, m:], case["pruned_idx"])
    torch.testing.assert_close(weights, case["W"], **WEIGHT)
    cosines = host_similarity(case["x_pruned"], case["x_kept"], normalise)
    torch.testing.assert_close(cosines, case["cos_sim"], **WEIGHT)
    torch.testing.assert_close(squeezing_weights(cosines, temperature), case["W_sorted"], **WEIGHT)
    tied = (cosines == cosines.amax(-1, keepdim=True)).sum(-1) > 1
    assert tied.sum() == settings["tied_pruned_tokens"]

    reduction = TPS(temperature, normalise).reduce(LayerView(x, 0, scores=score), m)
    assert torch.equal(reduction.kept, case["kept_idx"])
    assert torch.equal(gather_tokens(x, reduction.kept), case["x_kept"])
    torch.testing.assert_close(reduction.matrix(), case["W"], **WEIGHT)
    torch.testing.assert_close(reduction.down(x), case["y"], **TOKEN)


CHECKS = {"case": case}
