"""What every kind of attention layer has in common: from queries, keys and values to its output.

Shapes: B batch, H heads, N tokens, D head dimension, C channels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ttf.core.host import Attended, Request
from ttf.ops.attention import (
    class_row,
    column_sums,
    fused_attention,
    mapped_attention,
    side_by_side,
    size_bias,
    summed_attention,
)
from ttf.ops.numerics import norms


def attended_heads(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    request: Request,
    project: Callable[[Tensor], Tensor],
    dropout: float = 0.0,
) -> Attended:
    """Size-scaled attention (Eq. 7) with the statistics that are wanted.

    Args:
        q, k, v: (B, H, N, D).
        scale: of the logits.
        request: sizes, statistics, prefix.
        project: what the layer does after its softmax, heads side by side (B, N, H * D) to (B, N, C).
        dropout: probability, of the map.

    Returns:
        The output of the layer, and the statistics.
    """
    wanted, prefix, bias = request.wanted, request.prefix, size_bias(request.sizes, q.dtype)
    scores = attention = None
    if wanted.attention:
        heads, attention = mapped_attention(q, k, v, bias, scale, dropout)
        scores = column_sums(attention, wanted.score_rows, prefix) if wanted.score_rows else None
    elif wanted.score_rows in ("all", "patch"):
        heads, scores = summed_attention(q, k, v, bias, scale, dropout, wanted.score_rows, prefix, wanted.score_step)
    else:
        heads = fused_attention(q, k, v, bias, scale, dropout)
        scores = class_row(q, k, bias, scale) if wanted.score_rows == "class" else None
    return Attended(
        project(side_by_side(heads)),
        scores,
        keys=k.mean(dim=1) if wanted.keys else None,
        attention=attention,
        value_norms=norms(side_by_side(v)) if wanted.value_norms else None,
        class_query=side_by_side(q)[:, 0] if wanted.projections else None,
        flat_keys=side_by_side(k) if wanted.projections else None,
    )


def pooled_heads(
    q: Tensor,
    k: Tensor,
    values: Callable[[Tensor], Tensor],
    scale: float,
    request: Request,
    project: Callable[[Tensor, Tensor], Tensor],
    dropout: float = 0.0,
) -> Attended:
    """Attention of tokens that are reduced at the entrance of a block, by the pooled map of all tokens.

    Args:
        q, k: (B, H, N, D) of all tokens.
        values: of the new tokens as the layer sees them, (B, M, C) to (B, H, M, D).
        scale: of the logits.
        request: as for ``attended_heads``, with ``enter``.
        project: what the layer does after its softmax, from what it sees of the new tokens and heads side by side.
        dropout: probability, of the pooled map.

    Returns:
        The output of the layer (B, M, C), and the statistics of all tokens: column sums, mean keys, the map.
    """
    wanted, bias = request.wanted, size_bias(request.sizes, q.dtype)
    assert request.enter is not None
    logits = (q * scale) @ k.transpose(-2, -1)
    attention = torch.softmax(logits if bias is None else logits + bias, dim=-1, dtype=torch.float32)
    scores = column_sums(attention, wanted.score_rows, request.prefix) if wanted.score_rows else None
    keys = k.mean(dim=1) if wanted.keys else None
    seen = Attended(q, scores, keys, attention if wanted.attention else None)
    y, reduction = request.enter(seen)
    v = values(y)
    weights = reduction.pooled(attention)
    weights = F.dropout(weights, dropout) if dropout else weights
    return seen._replace(x=project(y, side_by_side(weights.to(v.dtype) @ v)))
