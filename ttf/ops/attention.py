"""Size-scaled attention (Eq. 7), and the statistics of its map that reduction methods ask for.

Shapes: B batch, H heads, N tokens, D head dimension. Imports torch alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ttf.ops.backends import learning, runner, seen
from ttf.ops.numerics import recorded, transforming

ScoreRows = Literal["all", "patch", "class"]
SCORE_ROWS: tuple[str, ...] = ("all", "patch", "class")
CPU_BLOCK = 1 << 19  # entries of a map, 2 MiB: what stays in the second-level cache of today's cores
GPU_BLOCK = 1 << 26
SMALLEST_SIZE = 1e-6  # keeps log(size) finite where a size underflows


@dataclass(frozen=True)
class Wanted:
    """What a method needs to know of a layer; nothing else is computed.

    Attributes:
        score_rows: sum the attention map over these rows (queries); None: no map is needed.
        score_step: of these rows every ``score_step``-th alone, the first one among them.
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
    score_step: int = 1

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


def masked(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, dropout: float = 0.0) -> Tensor:
    """Attention through torch's fused kernels, the bias as a mask."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout, scale=scale)


def fused_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, dropout: float = 0.0) -> Tensor:
    """Attention without statistics: torch's own, or, with a number per key on a GPU, ``ttf::attention``.

    Args:
        q, k, v: (B, H, N, D).
        bias: broadcastable to (B, H, N, N), or None.
        scale: of the logits.
        dropout: probability, of the map.

    Returns:
        (B, H, N, D).
    """
    if bias is not None and not dropout and _keyed(q, k, v, bias):
        return torch.ops.ttf.attention(q, k, v, bias, scale)
    return masked(q, k, v, bias, scale, dropout)


def _keyed(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> bool:
    """Whether there is a kernel for a bias of one number per key: torch's fused ones read a mask for every query."""
    if runner(q.device, q.dtype, k.dtype, v.dtype) != "triton" or seen(q, k, v, bias):
        return False
    return q.shape == k.shape == v.shape and bias.shape == (q.shape[0], 1, 1, q.shape[2])


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
        logits = logits.add_(bias)
    attention = torch.softmax(logits, dim=-1, dtype=torch.float32)
    weights = F.dropout(attention, dropout) if dropout else attention
    return weights.to(v.dtype) @ v, attention


def summed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    scale: float,
    dropout: float = 0.0,
    rows: ScoreRows = "all",
    prefix: int = 1,
    step: int = 1,
) -> tuple[Tensor, Tensor]:
    """Attention and the column sums of its map (Eq. 2), of which only a block at a time is ever in memory.

    Every block of the map is still in the cache when it is summed and multiplied with v, so the sums cost little more
    than reading it. One operator does it all, ``ttf::summed_attention``; ``ttf.ops.backends`` decides who runs it. With
    a gradient, dropout or under torch.func the whole map is computed instead; exported code takes whole rows.

    Args:
        q, k, v: (B, H, N, D).
        bias: (B, 1, 1, N), or None.
        scale: of the logits.
        dropout: probability; the sums are those of the map without it.
        rows: "all" or "patch" (no prefix tokens).
        prefix: number of prefix tokens P.
        step: sum over every ``step``-th of these queries alone; beyond 1 their part of the map is computed beside the
            attention, by torch's operators.

    Returns:
        output (B, H, N, D) in the dtype of v, and column sums (B, N) float32, mean over the heads.
    """
    first = prefix if rows == "patch" else 0
    if step > 1:
        sums = sampled_sums(q[:, :, first::step], k, bias, scale)
        return fused_attention(q, k, v, bias, scale, dropout), sums
    if dropout or learning(q, k, v, bias) or transforming():
        return summed_whole(q, k, v, bias, scale, first, dropout)
    operator = summed_in_blocks if seen(q, k, v) else torch.ops.ttf.summed_attention
    return operator(q, k, v, bias, scale, first)


def summed_whole(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, first: int, dropout: float = 0.0
) -> tuple[Tensor, Tensor]:
    """``summed_attention`` with the whole map in memory; queries from ``first`` on count."""
    out, attention = mapped_attention(q, k, v, bias, scale, dropout)
    return out, column_sums(attention, "patch", first)


def summed_in_blocks(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, first: int
) -> tuple[Tensor, Tensor]:
    """``summed_attention`` by torch's operators, a block of the map at a time; queries from ``first`` on count."""
    batch, heads, tokens, dim = q.shape
    out = v.new_empty(batch, tokens, heads, dim).transpose(1, 2)  # side by side in memory, as the projection wants
    sums = q.new_zeros(batch, tokens, dtype=torch.float32)
    for images, chosen, queries in _blocks(q):
        part = (images, chosen, queries)
        own = None if bias is None else bias[images]
        out[part], attention = mapped_attention(q[part], k[images, chosen], v[images, chosen], own, scale)
        sums[images] += attention[:, :, max(first - queries.start, 0) :].sum(dim=(1, 2))
    return out, sums / heads


def _blocks(q: Tensor) -> list[tuple[slice, slice, slice]]:
    """Images, heads and queries whose maps fit into the cache together: whole maps as long as these do."""
    batch, heads, tokens, _ = q.shape
    if torch.compiler.is_compiling() or recorded():  # of any number of images, and of tokens where these are few
        rows = [slice(0, None)] if tokens < 1024 else slices(tokens, 256)
        return [(slice(None), slice(None), queries) for queries in rows]
    budget = CPU_BLOCK if q.device.type == "cpu" else GPU_BLOCK
    area = max(1, tokens * tokens)
    images, together = max(1, budget // max(1, heads * area)), max(1, budget // area)
    queries = max(1, budget // max(1, tokens))
    return list(product(slices(batch, images), slices(heads, together), slices(tokens, queries)))


def slices(length: int, step: int) -> list[slice]:
    """[0, length) in parts of ``step``, the last one perhaps shorter."""
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


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


def sampled_sums(queries: Tensor, k: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """Column sums of some rows of the attention map, mean over the heads, without the rest of the map.

    Args:
        queries: (B, H, K, D), those whose rows count.
        k: (B, H, N, D).
        bias: broadcastable to (B, H, K, N), or None.
        scale: of the logits.

    Returns:
        (B, N) float32.
    """
    logits = (queries * scale) @ k.transpose(-2, -1)
    logits = logits if bias is None else logits + bias
    return torch.softmax(logits, dim=-1, dtype=torch.float32).sum(dim=2).mean(dim=1)


def side_by_side(heads: Tensor) -> Tensor:
    """Heads (B, H, N, D) next to each other: (B, N, H * D).

    How torch's attention lays out its result depends on the kernel; what is written down must not rely on it.
    """
    heads = heads.clone(memory_format=torch.contiguous_format) if recorded() else heads
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
