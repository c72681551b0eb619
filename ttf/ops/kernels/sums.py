"""Informativeness of every token (Eq. 2) from queries, keys and the log-sum-exp of each row, without the attention map.

Shapes: B batch, H heads, N tokens, D head dimension.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ttf.ops.kernels import LARGEST_HEAD
from ttf.ops.kernels.tiles import OTHER_KEYS, SUMS, dot, head_key, on_device, padded, precision, widened


@triton.jit(do_not_specialize=["heads", "n", "first_row", "bias_image", "lse_image", "lse_head"])
def column_sums_kernel(
    out, q, k, bias, lse, heads, n, dim, first_row, scale,
    q_image, q_head, q_row, q_dim, k_image, k_head, k_row, k_dim, bias_image, bias_row, lse_image, lse_head, lse_row,
    HAS_BIAS: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, DIM: tl.constexpr, PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):  # fmt: skip
    """Sums over the queries of one head, for one block of keys. The names behind ``scale`` are strides."""
    blocks = tl.cdiv(n, KEYS)
    pair = tl.program_id(0) // blocks
    image, head = (pair // heads).to(tl.int64), (pair % heads).to(tl.int64)
    j = tl.program_id(0) % blocks * KEYS + tl.arange(0, KEYS)
    d = tl.arange(0, DIM)
    key_at = k + image * k_image + head * k_head + j[:, None] * k_row + d[None, :] * k_dim
    keys = tl.trans(tl.load(key_at, mask=(j[:, None] < n) & (d[None, :] < dim), other=0.0))
    added = tl.zeros((KEYS,), tl.float32)
    if HAS_BIAS:
        added = tl.load(bias + image * bias_image + j * bias_row, mask=j < n, other=0.0).to(tl.float32)
    acc = tl.zeros((QUERIES, KEYS), tl.float32)  # summed over the queries once, at the end
    for start in range(first_row, n, QUERIES):
        i = start + tl.arange(0, QUERIES)
        query_at = q + image * q_image + head * q_head + i[:, None] * q_row + d[None, :] * q_dim
        queries = tl.load(query_at, mask=(i[:, None] < n) & (d[None, :] < dim), other=0.0)
        # rows behind the last one are exp(. - inf) = 0
        total = tl.load(lse + image * lse_image + head * lse_head + i * lse_row, mask=i < n, other=float("inf"))
        products = dot(queries, keys, tl.zeros((QUERIES, KEYS), tl.float32), PRECISION, WIDEN)
        acc += tl.exp(products * scale + added[None, :] - total[:, None])
    tl.store(out + pair.to(tl.int64) * n + j, tl.sum(acc, 0), mask=j < n)


def column_sums(q: Tensor, k: Tensor, bias: Tensor | None, lse: Tensor, scale: float, first_row: int = 0) -> Tensor:
    """Column sums of the attention map, mean over the heads: h_j = 1/H sum over heads and i >= first_row of A_ij.

    A_ij = exp(scale q_i . k_j + b_j - lse_i). Heads are summed apart and averaged by torch, so that the order is fixed.

    Args:
        q, k: (B, H, N, D), float32, float16 or bfloat16, any strides, D up to 128.
        bias: (B, 1, 1, N) or None; a token at minus infinity has the sum 0.
        lse: (B, H, N) float32, log-sum-exp of the rows of the logits, bias included (``fused.attention_with_lse``).
        scale: of the logits.
        first_row: the first query that counts; the number of prefix tokens for score_rows="patch".

    Returns:
        (B, N) float32.
    """
    batch, heads, n, dim = q.shape
    assert dim <= LARGEST_HEAD
    assert k.shape == q.shape and k.dtype == q.dtype and lse.shape == q.shape[:3] and lse.dtype == torch.float32
    out = torch.empty(batch, heads, n, dtype=torch.float32, device=q.device)
    launch = SUMS.get(head_key(q), OTHER_KEYS)
    bias_strides = (0, 0) if bias is None else (bias.stride(0), bias.stride(3))
    strides = (*q.stride(), *k.stride(), *bias_strides, *lse.stride())
    grid = (batch * heads * triton.cdiv(n, launch.columns),)
    with on_device(q):
        column_sums_kernel[grid](
            out, q, k, out if bias is None else bias, lse, heads, n, dim, first_row, float(scale), *strides,
            HAS_BIAS=bias is not None, QUERIES=launch.rows, KEYS=launch.columns, DIM=padded(dim),
            PRECISION=precision(q), WIDEN=widened(q), **launch.options,
        )  # fmt: skip
    return out.mean(dim=1)
