"""DivPrune against the official selection."""

from __future__ import annotations

import torch

from tests.golden.blocks import TOKEN, WEIGHT, Case
from ttf.methods.base import LayerView
from ttf.methods.divprune import DivPrune, diverse
from ttf.ops.bipartite import cosines


def case(case: Case) -> None:
    settings, x = case.settings, case["features"]
    kept = round(settings["ratio"] * settings["n_patches"])  # half to even
    assert kept == settings["kept"] and settings["margin_pick"] > 1e-5
    if "cosine_distance" in case:
        apart = 1 - cosines(x, x)
        torch.testing.assert_close(apart, case["cosine_distance"], **WEIGHT)
    assert torch.equal(diverse(x, kept), case["selected_idx"])
    reduction = DivPrune().reduce(LayerView(x, 0), kept)
    assert torch.equal(reduction.kept, case["kept_idx"])
    torch.testing.assert_close(reduction.matrix(), case["W"], **WEIGHT)
    torch.testing.assert_close(reduction.down(x), case["y"], **TOKEN)


CHECKS = {"case": case}
