"""The operators of a compressed model by the Triton kernels, which are imported when one of them is called."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from ttf.ops.kernels import LARGEST_HEAD
from ttf.ops.plain import Answer, Reading


def takes_heads(q: Tensor) -> bool:
    """Whether there are kernels for heads (B, H, N, D) of so many channels; else a warning says who runs."""
    if q.shape[-1] <= LARGEST_HEAD:
        return True
    warnings.warn(f"there is no kernel for heads of {q.shape[-1]} channels: torch's own attention runs", stacklevel=2)
    return False


def _empty(v: Tensor) -> Tensor:
    """What attention to nothing gives."""
    batch, heads, tokens, dim = v.shape
    return v.new_empty(batch, tokens, heads, dim).transpose(1, 2)


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    """Attention with a number per key, as ``ttf.ops.attention.fused_attention``."""
    if q.numel() == 0:
        return _empty(v)
    from ttf.ops.kernels import attention as kernels

    return kernels.attention(q, k, v, bias, scale)


def summed_attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, first: int
) -> tuple[Tensor, Tensor]:
    """Attention and the column sums of its map, as ``ttf.ops.attention.summed_in_blocks``."""
    if q.numel() == 0:
        return _empty(v), q.new_zeros(q.shape[0], q.shape[2], dtype=torch.float32)
    from ttf.ops.kernels import attention as kernels

    return kernels.summed_attention(q, k, v, bias, scale, first)


def transform(
    x: Tensor, features: Tensor, scores: Tensor, mass: Tensor | None, keep: int, prefix: int, reading: Reading
) -> Answer:
    """Select, assign and transform (Eq. 2-8), as ``ttf.ops.plain.transform``."""
    from ttf.ops.kernels import transform as kernels

    return kernels.transform(x, features, scores, mass, keep, prefix, reading)
