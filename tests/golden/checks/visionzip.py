"""VisionZip against the official tower."""

from __future__ import annotations

import torch

from tests.golden import margins
from tests.golden.blocks import TOKEN, WEIGHT, Case
from ttf.methods.base import LayerView
from ttf.methods.visionzip import VisionZip
from ttf.ops.reduction import gather_tokens


def case(case: Case) -> None:
    settings, x, metric = case.settings, case["features"], case["metric"]
    dominant, contextual = settings["dominant"], settings["contextual"]
    torch.testing.assert_close(case["k"].mean(dim=1), metric, **WEIGHT)
    torch.testing.assert_close(case["cls_attn"].sum(dim=1), case["cls_attn_sum"], **WEIGHT)
    margins.assert_clear(margins.cut(case["cls_attn_sum"].double().log(), dominant), margins.SCORE)
    for image, kept, targets in zip(range(len(x)), case["kept_idx"], case["contextual_idx"], strict=True):
        rest = sorted(set(range(1, x.shape[1])) - set(kept.tolist()) - set(targets.tolist()))
        gap = margins.runner_up(margins.cosines(metric[image, None, rest], metric[image, None, targets]))
        margins.assert_clear(gap, margins.COSINE)
    scores = torch.cat((torch.ones(len(x), 1), case["cls_attn"].mean(dim=1)), dim=1)
    view = LayerView(x, 1, scores=scores, keys=metric)
    reduction = VisionZip(contextual).reduce(view, 1 + dominant + contextual)
    assert torch.equal(
        reduction.kept[:, 1 : 1 + dominant], case["kept_idx"]
    )  # counts the class token, whatever is said
    assert torch.equal(reduction.kept[:, 1 + dominant :], case["contextual_idx"])
    torch.testing.assert_close(reduction.matrix(), case["W"], **WEIGHT)
    torch.testing.assert_close(reduction.down(x), case["y"], **TOKEN)
    assert torch.equal(reduction.down(x)[:, 1 : 1 + dominant], gather_tokens(x, case["kept_idx"]))


CHECKS = {"case": case}
