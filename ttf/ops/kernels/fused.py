"""Attention through torch's fused kernels, with the log-sum-exp that ``column_sums`` needs. Imports torch alone."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

BIAS_ALIGNMENT = 8  # elements; the kernel reads a row of the bias in vectors of that many


def _aligned(bias: Tensor, q: Tensor, keys: int) -> Tensor:
    """The bias as the memory-efficient kernel takes it: expanded, its rows at aligned addresses."""
    padded = F.pad(bias, (0, -keys % BIAS_ALIGNMENT))[..., :keys]
    return padded.expand(q.shape[0], q.shape[1], q.shape[2], keys)


def attention_with_lse(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Fused attention, and the log-sum-exp of each row of its logits, bias included.

    Args:
        q, k, v: (B, H, N, D), on a CPU or a GPU; D a multiple of 8 on a GPU.
        bias: (B, 1, 1, N) in the dtype of q, or None; minus infinity for tokens that are not attended to.
        scale: of the logits.

    Returns:
        output (B, H, N, D) in the dtype of v, and lse (B, H, N) float32.
    """
    # column_sums adds the same bias again: were it rounded here alone, the sums would be off by as much
    assert bias is None or bias.dtype == q.dtype
    if not q.is_cuda:
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, attn_mask=bias, scale=scale)
        return out, lse
    mask = None if bias is None else _aligned(bias, q, k.shape[2])
    out, lse, _, _ = torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, mask, True, scale=scale)
    return out, lse[:, :, : q.shape[2]]  # the kernel pads the rows to a multiple of 32
