"""The two operators of a reducing layer by the Triton kernels, which are imported when one of them is called."""

from __future__ import annotations

import torch
from torch import Tensor

from ttf.ops.kernels.fused import attention_with_lse
from ttf.ops.plain import Answer, Reading, with_isolated
from ttf.ops.reduction import behind_prefix, gather_tokens
from ttf.ops.transform import select, unit_features


def summed_attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, first: int
) -> tuple[Tensor, Tensor]:
    """Fused attention and the column sums of its map, as ``ttf.ops.attention.summed_in_blocks``."""
    from ttf.ops.kernels.sums import column_sums

    out, lse = attention_with_lse(q, k, v, bias, scale)
    side_by_side = out.transpose(1, 2).contiguous().transpose(1, 2)  # as it is already, or as the operator promises
    return side_by_side, column_sums(q, k, bias, lse, scale, first)


def transform(
    x: Tensor, features: Tensor, scores: Tensor, mass: Tensor | None, keep: int, prefix: int, reading: Reading
) -> Answer:
    """Select, assign and transform (Eq. 2-8), as ``ttf.ops.plain.transform``; W is never in memory as a whole."""
    from ttf.ops.kernels import transform as kernels

    units, isolated = unit_features(features), x.shape[1] - features.shape[1]
    kept, ranks = prefix - isolated, scores[:, prefix:]
    if reading.redundancy:
        ranks = kernels.novelty(units[:, kept:], ranks)
    index = behind_prefix(select(ranks, keep - prefix), kept)
    chosen = gather_tokens(units, index)
    lse = kernels.assignment_lse(units, chosen, index, *reading.assignment)
    y, sizes = kernels.transform_down(units, chosen, index, lse, mass, x[:, isolated:], *reading.assignment)
    return torch.cat((x[:, :isolated], y), dim=1), with_isolated(sizes, isolated), index
