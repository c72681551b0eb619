"""Size-scaled attention (Eq. 7), and the statistics of its map that reduction methods ask for.

Shapes: B batch, H heads, N tokens, D head dimension. Imports torch alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

ScoreRows = Literal["all", "patch", "class"]
SCORE_ROWS: tuple[str, ...] = ("all", "patch", "class")
SMALLEST_SIZE = 1e-6  # keeps log(size) finite where a size underflows


@dataclass(frozen=True)
class Wanted:
    """What a method needs to know of a layer; nothing else is computed.

    Attributes:
        score_rows: sum the attention map over these rows (queries); None: no map is needed.
        keys: keys averaged over the heads.
        normed: the tokens after the norm of the feed-forward half.
        attention: the whole attention map.
        value_norms: L2 norms of the values, all heads together.
        projections: the class token's query and all keys, heads side by side.
    """

    score_rows: ScoreRows | None = None
    keys: bool = False
    normed: bool = False
    attention: bool = False
    value_norms: bool = False
    projections: bool = False

    @property
    def needs_map(self) -> bool:
        """Whether the whole map has to be computed; the class row alone is cheaper."""
        return self.attention or self.score_rows in ("all", "patch")

    @property
    def needs_class_token(self) -> bool:
        return self.score_rows == "class" or self.projections


def check_score_rows(rows: str | None, prefix: int = 1) -> None:
    """Raise ``ValueError`` for unknown score rows, or the class row of a model without prefix tokens. None is fine."""
    if rows is not None and rows not in SCORE_ROWS:
        raise ValueError(f"score_rows must be one of {', '.join(SCORE_ROWS)}, got {rows!r}")
    if rows == "class" and prefix == 0:
        raise ValueError("score_rows=class needs a class token, and this model has none: use score_rows=all")


def size_bias(sizes: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """log s as an additive attention bias, the second term of Eq. 7.

    Args:
        sizes: (B, N) float32, or None where all sizes are 1. Size 0 marks padding, which no token attends to.
        dtype: of the queries.

    Returns:
        (B, 1, 1, N), or None.
    """
    if sizes is None:
        return None
    logs = sizes.clamp_min(SMALLEST_SIZE).log().masked_fill(sizes == 0, -torch.inf)
    return logs.to(dtype)[:, None, None, :]


def fused_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, dropout: float = 0.0) -> Tensor:
    """Attention without statistics, through torch's fused kernels. q, k, v: (B, H, N, D); returns (B, H, N, D)."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout, scale=scale)


def mapped_attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, dropout: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Attention with its map, softmax in float32 whatever the input.

    Args:
        q, k, v: (B, H, N, D).
        bias: broadcastable to (B, H, N, N), or None.
        scale: of the logits, usually D ** -0.5.
        dropout: probability, applied to the map that multiplies v, not to the one returned.

    Returns:
        output (B, H, N, D) in the dtype of v, and the attention map A (B, H, N, N) in float32.
    """
    logits = (q * scale) @ k.transpose(-2, -1)
    if bias is not None:
        logits = logits + bias
    attention = torch.softmax(logits, dim=-1, dtype=torch.float32)
    weights = F.dropout(attention, dropout) if dropout else attention
    return weights.to(v.dtype) @ v, attention


def class_row(q: Tensor, k: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """The class token's row of the attention map, mean over the heads, without the rest of the map.

    Args:
        q, k: (B, H, N, D); the class token is token 0.
        bias: broadcastable to (B, H, 1, N), or None.
        scale: of the logits.

    Returns:
        (B, N) float32.
    """
    logits = (q[:, :, :1] * scale) @ k.transpose(-2, -1)
    if bias is not None:
        logits = logits + bias
    return torch.softmax(logits, dim=-1, dtype=torch.float32).squeeze(2).mean(dim=1)


def side_by_side(heads: Tensor) -> Tensor:
    """Heads (B, H, N, D) next to each other: (B, N, H * D)."""
    return heads.transpose(1, 2).flatten(2)


def column_sums(attention: Tensor, rows: ScoreRows = "all", prefix: int = 1) -> Tensor:
    """Informativeness of every token (Eq. 2): H_j = sum over rows i of A_ij, mean over the heads.

    Args:
        attention: (B, H, N, N).
        rows: "all" (the paper), "patch" (no prefix tokens) or "class" (the class row alone, EViT's score).
        prefix: number of prefix tokens P.

    Returns:
        (B, N) float32.

    Raises:
        ValueError: unknown ``rows``, or the class row of a model without a class token.
    """
    check_score_rows(rows, prefix)
    chosen = {"all": slice(None), "patch": slice(prefix, None), "class": slice(0, 1)}[rows]
    return attention[:, :, chosen].float().sum(dim=(1, 2)) / attention.shape[1]
