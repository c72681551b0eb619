"""MCTF against its official operators and blocks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tests.golden import margins
from tests.golden.blocks import TOKEN, WEIGHT, Case, attend, block_of, enter, feed_forward
from ttf.methods.base import LayerView
from ttf.methods.mctf import MCTF
from ttf.ops.attention import column_sums, mapped_attention, size_bias
from ttf.ops.reduction import AssignmentReduction

POOLING: dict[int, Any] = {0: "sizes", 1: "attention", 3: "equal"}


def _method(case: Case, **changes: Any) -> MCTF:
    settings = case.settings
    taus = tuple(float(settings[f"tau_{name}"]) for name in ("sim", "info", "size"))
    method = MCTF(*taus, bool(settings["bidirection"]), POOLING[settings["pooling_type"]])
    return replace(method, **changes)


def _clear(case: Case, x: Tensor, sizes: Tensor) -> None:
    """Every decision of the definition in float64: the cut and the partners of either direction, and the order."""
    settings, prefix, r = case.settings, case.settings["num_protected"], case.settings["r_effective"]
    scores = (margins.cosines(x[:, ::2], x[:, 1::2]) + 1) / 2
    scores = scores ** (1 / settings["tau_sim"]) if settings["tau_sim"] else torch.ones_like(scores)
    for values, tau in ((case["attn"].mean((1, 2)), settings["tau_info"]), (sizes, settings["tau_size"])):
        rare = 1 / values.double()
        rare = rare / rare.amax(1, keepdim=True)
        if tau:
            scores = scores * (rare[:, ::2, None] * rare[:, None, 1::2]) ** (1 / tau)
    scores[:, :prefix] = -1.0
    first = r // 2 if settings["bidirection"] else r
    best = scores.amax(2)
    order = best.argsort(1, descending=True)
    partners = margins.runner_up(scores).gather(1, order[:, :first])
    margins.assert_clear(torch.minimum(margins.cut(best, first), partners.amin(1)), margins.COSINE)
    if settings["bidirection"]:
        left = scores.scatter(1, order[:, :first, None].expand(-1, -1, scores.shape[2]), -2.0)
        again = left.amax(1)
        margins.assert_clear(margins.order(again), 0.0)
        partners = margins.runner_up(left.transpose(1, 2)).gather(1, again.argsort(1, descending=True)[:, : r - first])
        margins.assert_clear(torch.minimum(margins.cut(again, r - first), partners.amin(1)), margins.COSINE)


def _check(case: Case, reduction: AssignmentReduction, x: Tensor, y: str) -> None:
    assert torch.equal((reduction.matrix() > 0).float(), case["source"])
    assert torch.equal(reduction.kept, case["row_idx"])
    torch.testing.assert_close(reduction.matrix(), case["W"], **WEIGHT)
    torch.testing.assert_close(reduction.sizes, case["size_out"].squeeze(-1), **WEIGHT)
    torch.testing.assert_close(reduction.down(x), case[y], **TOKEN)
    if "attn_out" in case:
        torch.testing.assert_close(reduction.pooled(case["attn"]), case["attn_out"], **WEIGHT)


def op(case: Case) -> None:
    settings, x, sizes, q, k = case.settings, case["x"], case["size_in"].squeeze(-1), case["q"], case["k"]
    prefix, keep = settings["num_protected"], settings["N"] - settings["r_effective"]
    _clear(case, x, sizes)
    for given in (sizes, None) if bool((sizes == 1).all()) else (sizes,):
        _, attention = mapped_attention(q, k, k, size_bias(given, q.dtype), q.shape[-1] ** -0.5)
        torch.testing.assert_close(attention, case["attn"], **WEIGHT)
        scores = column_sums(attention, "all", prefix)
        torch.testing.assert_close(scores / settings["N"], case["column_mean"], **WEIGHT)
        reduction = _method(case).reduce(LayerView(x, prefix, sizes=given, scores=scores), keep)
        _check(case, reduction, x, "y")
    more = _method(case).reduce(LayerView(x, prefix, sizes=sizes, scores=scores), prefix + 1)
    half = settings["N"] - (settings["N"] - prefix) // 2  # never more go, and ten stay
    assert more.sizes.shape[1] == max(half, min(settings["N"], 10))


@torch.inference_mode()
def block(case: Case) -> None:
    settings, sizes, x = case.settings, case["size_in"].squeeze(-1), case["x_in"]
    keep, step, block = settings["N"] - settings["r_effective"], settings["one_step_ahead"], block_of(case)
    _clear(case, case["fuse_input"], sizes)
    method = _method(case, place="entrance" if step == 1 else "between")
    assert settings["prop_attn"] == method.scaling and method.at_entrance == (step == 1)
    if step == 1:
        view, reduction, after = enter(block, x, sizes, method, keep)
        out = feed_forward(block, after)
    else:
        view, reduction, out = _by_hand(block, x, sizes, method, keep, step)
    torch.testing.assert_close(view.x, case["fuse_input"], **TOKEN)
    torch.testing.assert_close(view.scores / settings["N"], case["attn"].mean((1, 2)), **WEIGHT)
    _check(case, reduction, view.x, "reduced")
    torch.testing.assert_close(out, case["x_out"], **TOKEN)


def _by_hand(block: Any, x: Tensor, sizes: Tensor, method: MCTF, keep: int, step: int) -> tuple[Any, Any, Tensor]:
    """The other places of the official code: before an ordinary block (2), or behind it (0)."""
    view = attend(block, x, sizes, method.wanted, 1)
    view = replace(view, x=x if step == 2 else feed_forward(block, view.x), sizes=sizes)
    reduction = method.reduce(view, keep)
    y = reduction.down(view.x)
    if step == 2:
        y = feed_forward(block, attend(block, y, reduction.sizes, method.wanted, 1).x)
    return view, reduction, y


CHECKS = {"op": op, "block": block}
