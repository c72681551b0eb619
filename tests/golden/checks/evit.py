"""EViT against its official blocks."""

from __future__ import annotations

import torch

from tests.golden import margins
from tests.golden.blocks import TOKEN, WEIGHT, Case, run_block
from ttf.methods.evit import EViT
from ttf.schedule import KeepRatio


def case(case: Case) -> None:
    settings = case.settings
    kept = KeepRatio(settings["keep_rate"], (0,), "ceil").kept(0, settings["N"] - 1)
    assert kept == settings["kept"]
    margins.assert_clear(margins.order(case["cls_attn"].double().log(), kept), margins.SCORE)
    view, reduction, reduced, out = run_block(case, EViT(settings["fuse_token"]), 1 + kept)
    torch.testing.assert_close(view.x, case["x_attn"], **TOKEN)
    torch.testing.assert_close(view.scores[:, 1:], case["cls_attn"], **WEIGHT)
    assert torch.equal(reduction.kept[:, 1:] - 1, case["kept_idx"])
    torch.testing.assert_close(reduction.matrix(), case["W_derived"], **WEIGHT)
    torch.testing.assert_close(reduced, case["reduced"], **TOKEN)
    torch.testing.assert_close(out, case["x_out"], **TOKEN)


CHECKS = {"case": case}
