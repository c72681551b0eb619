"""What every kind of attention layer has in common: from queries, keys and values to its output.

Shapes: B batch, H heads, N tokens, D head dimension, C channels.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

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
        heads, scores = summed_attention(q, k, v, bias, scale, dropout, wanted.score_rows, prefix)
    else:
        heads = fused_attention(q, k, v, bias, scale, dropout)
        scores = class_row(q, k, bias, scale) if wanted.score_rows == "class" else None
    return Attended(
        project(side_by_side(heads)),
        scores,
        keys=k.mean(dim=1) if wanted.keys else None,
        attention=attention,
        value_norms=side_by_side(v).float().norm(dim=-1) if wanted.value_norms else None,
        class_query=side_by_side(q)[:, 0] if wanted.projections else None,
        flat_keys=side_by_side(k) if wanted.projections else None,
    )
