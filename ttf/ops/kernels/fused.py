"""Attention through torch's fused kernels, with the log-sum-exp that ``column_sums`` needs. Imports torch alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

VECTOR = 8  # channels; heads of other multiples would be padded, which costs a copy
Attend = Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, ...]]


def _flash(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, ...]:
    return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, scale=scale)


def _efficient(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, ...]:
    return torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, None, True, scale=scale)


def _cudnn(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, ...]:
    return torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, True, scale=scale)


KNOWN: dict[int, Attend] = {
    SDPBackend.FLASH_ATTENTION.value: _flash,
    SDPBackend.EFFICIENT_ATTENTION.value: _efficient,
    SDPBackend.CUDNN_ATTENTION.value: _cudnn,
}


def chosen(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Attend | None:
    """What torch's own attention would run for these; None where that gives no log-sum-exp, or needs padded heads."""
    if not q.is_cuda or q.shape[-1] % VECTOR:
        return None
    return KNOWN.get(torch._fused_sdp_choice(q, k, v, scale=scale))


def attention_with_lse(q: Tensor, k: Tensor, v: Tensor, scale: float, attend: Attend) -> tuple[Tensor, Tensor]:
    """Attention, and the log-sum-exp of each row of its logits.

    Args:
        q, k, v: (B, H, N, D) on a GPU.
        scale: of the logits.
        attend: from ``chosen``.

    Returns:
        (B, H, N, D) in the dtype of v, the heads side by side in memory, and (B, H, N) float32.
    """
    batch, heads, tokens, _ = q.shape
    out, lse, *_ = attend(q, k, v, scale)
    side_by_side = out.transpose(1, 2).contiguous().transpose(1, 2)  # as it is where q comes from one projection
    return side_by_side, lse.reshape(batch, heads, -1)[..., :tokens]  # some pad the rows, some add a dimension
