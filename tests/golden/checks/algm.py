"""ALGM's two mergings against the official ones."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.golden import margins
from tests.golden.blocks import TOKEN, WEIGHT, Case
from ttf.methods.algm import ALGM, window_similarity, windows_of
from ttf.methods.base import LayerView
from ttf.ops.reduction import AssignmentReduction

FEWEST = 2  # the class token and one more: no bound of the schedule's


def _check(case: Case, reduction: AssignmentReduction) -> None:
    assert torch.equal((reduction.matrix() > 0).float(), case["source"])
    torch.testing.assert_close(reduction.matrix(), case["W"], **WEIGHT)
    torch.testing.assert_close(reduction.sizes, case["size_out"].squeeze(-1), **WEIGHT)
    torch.testing.assert_close(reduction.down(case["x"]), case["y"], **TOKEN)


def _view(case: Case, **fields: object) -> LayerView:
    return LayerView(case["x"], 1, sizes=case["size_in"].squeeze(-1), **fields)  # type: ignore[arg-type]


def local(case: Case) -> None:
    settings, x = case.settings, case["x"]
    side, (window, other) = settings["side"], settings["window"]
    assert window == other
    windows = windows_of((side, side), window, x.device)
    similar = window_similarity(x[:, 1:], windows)
    torch.testing.assert_close(similar, case["window_similarity"], **WEIGHT)
    margins.assert_clear((similar.double() - settings["threshold"]).abs(), margins.COSINE)
    margins.assert_clear(margins.order(similar.double(), settings["r_windows"]), margins.COSINE)
    view, count = _view(case, grid=(side, side)), settings["r_windows"]
    reduction = ALGM(settings["threshold"], window).reduce(view, FEWEST)
    assert torch.equal(reduction.kept[:, 1 : 1 + count] - 1, windows[case["merged_windows"]][:, :, 0])
    _check(case, reduction)
    _check(case, ALGM(None, window).reduce(view, x.shape[1] - count * (window**2 - 1)))


def at_once(case: Case) -> None:
    settings, x = case.settings, case["x"]
    margins.assert_clear(margins.matching(x, settings["r"], 1), margins.COSINE)
    best = _best(x)
    threshold = best.mean() + best.std(1).mean() / settings["layer_number"]
    assert abs(float(threshold) - settings["threshold"]) < 1e-3
    margins.assert_clear((best - threshold).abs(), margins.COSINE)
    view = _view(case, block=settings["layer_number"] - 1)
    _check(case, ALGM().reduce(view, FEWEST))
    _check(case, ALGM(None).reduce(view, x.shape[1] - settings["r"]))


def _best(x: Tensor) -> Tensor:
    """Best cosines of all tokens at even positions but the class token, float64."""
    return margins.cosines(x[:, 2::2], x[:, 1::2]).amax(2)


CHECKS = {"local": local, "global": at_once}
