"""DiffRate against its official blocks."""

from __future__ import annotations

import torch

from tests.golden import margins
from tests.golden.blocks import TOKEN, WEIGHT, Case, run_block
from ttf.methods.base import LayerView
from ttf.methods.diffrate import DiffRate, from_counts
from ttf.ops.bipartite import cosines
from ttf.ops.reduction import AssignmentReduction, gather_tokens


def _check(case: Case, x: torch.Tensor, reduction: AssignmentReduction) -> None:
    matrix, reduced = reduction.matrix(), reduction.down(x)
    assert torch.equal((matrix > 0).float(), case["source"])
    assert torch.equal(reduction.kept, case["order"][:, : reduction.kept.shape[1]])
    torch.testing.assert_close(matrix, case["W"], **WEIGHT)
    torch.testing.assert_close(reduction.sizes, case["size_out"].squeeze(-1), **WEIGHT)
    torch.testing.assert_close(reduced, case["reduced"], **TOKEN)
    # the official way back gives a dropped token the first row
    torch.testing.assert_close(gather_tokens(reduced, reduction.index.clamp_min(0)), case["uncompressed"], **TOKEN)


def _check_merge(case: Case, x: torch.Tensor, reduction: AssignmentReduction, left: int) -> None:
    """The tokens that take part in merging, and their cosines."""
    head, live = reduction.kept.shape[1], case["order"][:, :left]
    torch.testing.assert_close(gather_tokens(x, live), case["merge_input"], **TOKEN)
    torch.testing.assert_close(reduction.down(x), case["merge_output"], **TOKEN)
    tail, hosts = case["merge_input"][:, head:], case["merge_input"][:, 1:head]
    margins.assert_clear(margins.runner_up(margins.cosines(tail, hosts)), margins.COSINE)
    best = cosines(gather_tokens(x, live[:, head:]), gather_tokens(x, live[:, 1:head])).amax(dim=2)
    torch.testing.assert_close(best, case["merge_similarity"], **WEIGHT)
    assert torch.equal(reduction.index >= 0, torch.zeros_like(reduction.index).scatter(1, live, 1) > 0)


def case(case: Case) -> None:
    settings, sizes, x = case.settings, case["size_in"].squeeze(-1), case["x_attn"]
    left = min(settings["prune_kept"], settings["N"])
    method, counts = from_counts([settings["prune_kept"]], [settings["merge_kept"]])
    keep = 1 + counts.kept(0, settings["N"] - 1)
    margins.assert_clear(margins.order(case["cls_attn"].double().log()), margins.SCORE)
    row = case["attn"].mean(dim=1)[:, 0]
    torch.testing.assert_close(row[:, 1:], case["cls_attn"], **WEIGHT)
    reduction = method.reduce(LayerView(x, 1, sizes=sizes, scores=row), keep)
    _check(case, x, reduction)
    if "merge_input" in case:
        _check_merge(case, x, reduction, left)
    view, reduction, _, out = run_block(case, DiffRate((settings["prune_kept"],)), keep, sizes)
    torch.testing.assert_close(view.x, x, **TOKEN)
    torch.testing.assert_close(view.scores[:, 1:], case["cls_attn"], **WEIGHT)
    _check(case, view.x, reduction)
    torch.testing.assert_close(out, case["x_out"], **TOKEN)


CHECKS = {"case": case}
