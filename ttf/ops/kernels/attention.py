"""Attention with a number per key (Eq. 7, log s), and with the column sums of its map (Eq. 2).

Shapes: B batch, H heads, N tokens, D head dimension. Logits are in base 2, where exponentials are cheapest.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ttf.ops.kernels.fused import attention_with_lse, chosen
from ttf.ops.kernels.sums import column_sums
from ttf.ops.kernels.tiles import (
    KEYS,
    LN2,
    LOG2E,
    NO_WHOLE,
    OTHER_KEYS,
    WHOLE,
    Launch,
    dot,
    head_key,
    on_device,
    padded,
    precision,
    rows_in_memory,
    widened,
)


@triton.jit
def _logits(
    q, key, bias, j, d, n, dim, row, scale, log2e,
    HAS_BIAS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Logits of queries (ROWS, D) and keys j, minus infinity behind the last one."""
    keys = tl.load(key + j[:, None] * row + d[None, :], mask=(j[:, None] < n) & (d[None, :] < dim), other=0.0)
    products = dot(q, tl.trans(keys), tl.zeros((ROWS, COLUMNS), tl.float32), PRECISION, WIDEN)
    if HAS_BIAS:
        added = tl.load(bias + j, mask=j < n, other=float("-inf")).to(tl.float32) * log2e
        return products * (scale * log2e) + added[None, :]
    return tl.where(j[None, :] < n, products * (scale * log2e), float("-inf"))


@triton.jit(do_not_specialize=["heads", "n", "bias_image"])
def attention_kernel(
    out, lse, q, k, v, bias, heads, n, dim, scale, log2e, ln2,
    q_image, q_head, q_row, k_image, k_head, k_row, v_image, v_head, v_row, out_row, bias_image,
    HAS_BIAS: tl.constexpr, WITH_LSE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DIM: tl.constexpr,
    PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """One block of queries of one head, over all keys block by block."""
    blocks = tl.cdiv(n, ROWS)
    pair = tl.program_id(0) // blocks
    image, head = (pair // heads).to(tl.int64), pair % heads
    i = tl.program_id(0) % blocks * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, DIM)
    inside = (i[:, None] < n) & (d[None, :] < dim)
    queries = tl.load(q + image * q_image + head * q_head + i[:, None] * q_row + d[None, :], mask=inside, other=0.0)
    k += image * k_image + head * k_head
    v += image * v_image + head * v_head
    bias += image * bias_image
    highest = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, DIM), tl.float32)
    for start in range(0, n, COLUMNS):
        j = start + tl.arange(0, COLUMNS)
        logits = _logits(queries, k, bias, j, d, n, dim, k_row, scale, log2e, HAS_BIAS, ROWS, COLUMNS, PRECISION, WIDEN)
        above = tl.maximum(highest, tl.max(logits, 1))
        shift = tl.where(above == float("-inf"), 0.0, above)  # a block of nothing but padding
        faded, weights = tl.exp2(highest - shift), tl.exp2(logits - shift[:, None])
        total = total * faded + tl.sum(weights, 1)
        values = tl.load(v + j[:, None] * v_row + d[None, :], mask=(j[:, None] < n) & (d[None, :] < dim), other=0.0)
        acc = dot(weights.to(values.dtype), values, acc * faded[:, None], PRECISION, WIDEN)
        highest = above
    out += image * n * out_row + head * dim
    tl.store(out + i[:, None] * out_row + d[None, :], (acc / total[:, None]).to(out.dtype.element_ty), mask=inside)
    if WITH_LSE:
        tl.store(lse + pair.to(tl.int64) * n + i, (highest + tl.log2(total)) * ln2, mask=i < n)


@triton.jit(do_not_specialize=["heads", "n", "first", "bias_image"])
def whole_kernel(
    out, part, q, k, v, bias, heads, n, dim, first, scale, log2e,
    q_image, q_head, q_row, k_image, k_head, k_row, v_image, v_head, v_row, out_row, bias_image,
    HAS_BIAS: tl.constexpr, SUMS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DIM: tl.constexpr,
    PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """One block of queries of one head, all keys in one tile; SUMS: the block's share of the column sums as well."""
    blocks = tl.cdiv(n, ROWS)
    pair = tl.program_id(0) // blocks
    image, head = (pair // heads).to(tl.int64), pair % heads
    i = tl.program_id(0) % blocks * ROWS + tl.arange(0, ROWS)
    d, j = tl.arange(0, DIM), tl.arange(0, COLUMNS)
    inside = (i[:, None] < n) & (d[None, :] < dim)
    queries = tl.load(q + image * q_image + head * q_head + i[:, None] * q_row + d[None, :], mask=inside, other=0.0)
    k += image * k_image + head * k_head
    v += image * v_image + head * v_head
    bias += image * bias_image
    logits = _logits(queries, k, bias, j, d, n, dim, k_row, scale, log2e, HAS_BIAS, ROWS, COLUMNS, PRECISION, WIDEN)
    weights = tl.exp2(logits - tl.max(logits, 1)[:, None])
    inverse = 1.0 / tl.sum(weights, 1)
    values = tl.load(v + j[:, None] * v_row + d[None, :], mask=(j[:, None] < n) & (d[None, :] < dim), other=0.0)
    acc = dot(weights.to(values.dtype), values, tl.zeros((ROWS, DIM), tl.float32), PRECISION, WIDEN)
    out += image * n * out_row + head * dim
    tl.store(out + i[:, None] * out_row + d[None, :], (acc * inverse[:, None]).to(out.dtype.element_ty), mask=inside)
    if SUMS:
        counted = tl.where((i < n) & (i >= first), inverse / heads, 0.0)
        at = part + tl.program_id(0).to(tl.int64) * n + j
        tl.store(at, tl.sum(weights * counted[:, None], 0), mask=j < n)


def _whole(q: Tensor) -> Launch | None:
    """How all keys of q (B, H, N, D) go into one tile, or None where they do not."""
    launch = WHOLE.get(head_key(q), NO_WHOLE)
    return launch if q.shape[2] <= launch.columns else None


def _arguments(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """Queries, keys, values and bias as the kernels take them, and their strides."""
    parts = tuple(rows_in_memory(part) for part in (q, k, v))
    strides = tuple(stride for part in parts for stride in part.stride()[:3])
    row = q.shape[1] * q.shape[3]  # of the answer, its heads side by side
    if bias is None:
        return (*parts, parts[0]), (*strides, row, 0)
    bias = rows_in_memory(bias)
    return (*parts, bias), (*strides, row, bias.stride(0))


def _with_keys_in_blocks(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, with_lse: bool
) -> tuple[Tensor, Tensor]:
    """Heads (B, H, N, D), side by side in memory, and the log-sum-exp of each row (B, H, N), if it is wanted."""
    batch, heads, n, dim = q.shape
    launch = KEYS.get(head_key(q), OTHER_KEYS)
    out = torch.empty(batch, n, heads, dim, device=q.device, dtype=v.dtype)
    lse = torch.empty(batch, heads, n if with_lse else 0, device=q.device, dtype=torch.float32)
    tensors, strides = _arguments(q, k, v, bias)
    with on_device(q):
        attention_kernel[(batch * heads * triton.cdiv(n, launch.rows),)](
            out, lse, *tensors, heads, n, dim, float(scale), LOG2E, LN2, *strides, HAS_BIAS=bias is not None,
            WITH_LSE=with_lse, ROWS=launch.rows, COLUMNS=launch.columns, DIM=padded(dim), PRECISION=precision(q),
            WIDEN=widened(q), **launch.options,
        )  # fmt: skip
    return out.transpose(1, 2), lse


def _with_keys_at_once(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, first: int | None, launch: Launch
) -> tuple[Tensor, Tensor]:
    """Heads (B, H, N, D), side by side in memory, and partial column sums (B, blocks, N) from query ``first`` on."""
    batch, heads, n, dim = q.shape
    blocks = triton.cdiv(n, launch.rows)
    out = torch.empty(batch, n, heads, dim, device=q.device, dtype=v.dtype)
    part = torch.empty(batch, 0 if first is None else heads * blocks, n, device=q.device, dtype=torch.float32)
    tensors, strides = _arguments(q, k, v, bias)
    with on_device(q):
        whole_kernel[(batch * heads * blocks,)](
            out, part, *tensors, heads, n, dim, first or 0, float(scale), LOG2E, *strides, HAS_BIAS=bias is not None,
            SUMS=first is not None, ROWS=launch.rows, COLUMNS=padded(n), DIM=padded(dim), PRECISION=precision(q),
            WIDEN=widened(q), **launch.options,
        )  # fmt: skip
    return out.transpose(1, 2), part


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    """softmax(scale q k^T + bias) v.

    Args:
        q, k, v: (B, H, N, D), float32, float16 or bfloat16, any strides, D up to ``LARGEST_HEAD``.
        bias: (B, 1, 1, N); a key at minus infinity is not attended to.
        scale: of the logits.

    Returns:
        (B, H, N, D) in the dtype of v, the heads side by side in memory.
    """
    launch = _whole(q)
    if launch is None:
        return _with_keys_in_blocks(q, k, v, bias, scale, False)[0]
    return _with_keys_at_once(q, k, v, bias, scale, None, launch)[0]


def summed_attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, first: int
) -> tuple[Tensor, Tensor]:
    """``attention``, and the column sums of its map over the queries from ``first`` on, (B, N) float32.

    Where all keys fit into one tile, one kernel gives both. Else attention gives its log-sum-exp, torch's own where
    there is no bias, and a second kernel goes over q k^T once more.
    """
    launch = _whole(q)
    if launch is not None:
        out, part = _with_keys_at_once(q, k, v, bias, scale, first, launch)
        return out, part.sum(1)
    attend = chosen(q, k, v, scale) if bias is None else None
    if attend is None:
        out, lse = _with_keys_in_blocks(q, k, v, bias, scale, True)
    else:
        out, lse = attention_with_lse(q, k, v, scale, attend)
    return out, column_sums(q, k, bias, lse, scale, first)
