"""The transform (Eq. 2-8): Gram matrix, redundancy-aware score, ranks, W and W X, one kernel each.

W is in memory, in the dtype of the tokens, for as many images at a time as ``WORKSPACE`` allows. Shapes: B batch, N old
and M new tokens, n and m of them that take part, C channels.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ttf.ops.attention import slices
from ttf.ops.kernels.gram import ALIGNED, gram, novelty
from ttf.ops.kernels.ranking import select
from ttf.ops.kernels.tiles import (
    ASSIGN,
    DOWN,
    cosines,
    dot,
    is_half,
    on_device,
    padded,
    precision,
    rows_in_memory,
    widened,
)
from ttf.ops.plain import Answer, Reading

WORKSPACE = 100 * 2**20  # bytes of the Gram matrices that are in memory at a time
SMALLEST_SUM = torch.finfo(torch.float32).tiny
SUMMED = 16  # partial sums that are added at a time


@triton.jit
def _logits(gram, inverse, index, own, i, j, n, m, row, kappa, tau, MASKED: tl.constexpr):
    """Gated logits (Eq. 3 and the numerator of Eq. 5) of old tokens j and new tokens i, (J, I) float32.

    Minus infinity where the gate is a mask and closed, and for i >= m.
    """
    chosen = tl.load(index + i, mask=i < m, other=0)
    others = tl.load(inverse + chosen, mask=i < m, other=0.0)
    there = (j[:, None] < n) & (i[None, :] < m)
    products = tl.load(gram + j[:, None] * row + chosen[None, :], mask=there, other=0.0)
    similar = tl.where(chosen[None, :] == j[:, None], 1.0, cosines(products, own, others))
    closed = float("-inf") if MASKED else 0.0
    return tl.where(i[None, :] < m, tl.where(similar < kappa, closed, similar * tau), float("-inf"))


@triton.jit
def _finite(highest):
    """0 in place of minus infinity, for infinity minus infinity would be no number."""
    return tl.where(highest == float("-inf"), 0.0, highest)


@triton.jit(do_not_specialize=["n", "m", "mass_image"])
def assign_kernel(
    weights, part, gram, inverse, index, mass, n, m, mass_image, row, wide, kappa, tau, smallest,
    MASKED: tl.constexpr, HAS_MASS: tl.constexpr, WHOLE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Shares of one block of old tokens, times their masses, and what these add to the sizes of the new ones."""
    blocks = tl.cdiv(n, ROWS)
    block, image = tl.program_id(0) % blocks, (tl.program_id(0) // blocks).to(tl.int64)
    j = block * ROWS + tl.arange(0, ROWS)
    gram += image * n * row
    inverse += image * n
    index += image * m
    weights += image * n * wide
    part += (image * blocks + block) * m
    own = tl.load(inverse + j, mask=j < n, other=0.0)
    heavy = tl.where(j < n, 1.0, 0.0)
    if HAS_MASS:
        heavy = tl.load(mass + image * mass_image + j, mask=j < n, other=0.0)
    i = tl.arange(0, COLUMNS)
    if WHOLE:
        logits = _logits(gram, inverse, index, own, i, j, n, m, row, kappa, tau, MASKED)
        shares = tl.exp(logits - _finite(tl.max(logits, 1))[:, None])
        shares *= (heavy / tl.maximum(tl.sum(shares, 1), smallest))[:, None]
        tl.store(part + i, tl.sum(shares, 0), mask=i < m)
        at = weights + j[:, None] * wide + i[None, :]
        tl.store(at, shares.to(weights.dtype.element_ty), mask=(j[:, None] < n) & (i[None, :] < wide))
    else:
        highest = tl.full((ROWS,), float("-inf"), tl.float32)
        total = tl.zeros((ROWS,), tl.float32)
        for start in range(0, m, COLUMNS):
            logits = _logits(gram, inverse, index, own, start + i, j, n, m, row, kappa, tau, MASKED)
            above = tl.maximum(highest, tl.max(logits, 1))
            shift = _finite(above)
            total = total * tl.exp(highest - shift) + tl.sum(tl.exp(logits - shift[:, None]), 1)
            highest = above
        shift, heavy = _finite(highest), heavy / tl.maximum(total, smallest)
        for start in range(0, m, COLUMNS):
            logits = _logits(gram, inverse, index, own, start + i, j, n, m, row, kappa, tau, MASKED)
            shares = tl.exp(logits - shift[:, None]) * heavy[:, None]
            tl.store(part + start + i, tl.sum(shares, 0), mask=start + i < m)
            at = weights + j[:, None] * wide + start + i[None, :]
            inside = (j[:, None] < n) & (start + i[None, :] < wide)
            tl.store(at, shares.to(weights.dtype.element_ty), mask=inside)


@triton.jit
def _size(part, i, blocks, m, SUMMED: tl.constexpr):
    """Sizes of the new tokens i, from the partial sums of every block of old ones."""
    t = tl.arange(0, SUMMED)
    size = tl.zeros_like(i).to(tl.float32)
    for start in range(0, blocks, SUMMED):
        there = (start + t[:, None] < blocks) & (i[None, :] < m)
        size += tl.sum(tl.load(part + (start + t[:, None]) * m + i[None, :], mask=there, other=0.0), 0)
    return size


@triton.jit
def _copy(y, sizes, x, c, isolated, channels, x_row, group):
    """Some channels of the isolated tokens; the first group of them stores their sizes as well."""
    for front in range(isolated):
        kept = tl.load(x + front * x_row + c, mask=c < channels)
        tl.store(y + front * channels + c, kept, mask=c < channels)
        if group == 0:
            tl.store(sizes + front, 1.0)


@triton.jit(do_not_specialize=["n", "m", "blocks", "isolated", "y_image", "size_image"])
def down_kernel(
    y, sizes, x, weights, part, n, m, blocks, isolated, channels, x_image, x_row, y_image, size_image, wide, smallest,
    NORMALISED: tl.constexpr, NEW: tl.constexpr, CHANNELS: tl.constexpr, OLD: tl.constexpr, SUMMED: tl.constexpr,
    PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Some channels of some new tokens: their weighted means, and their sizes; the isolated tokens are copied."""
    rows, groups = tl.cdiv(m, NEW), tl.cdiv(channels, CHANNELS)
    tile, group = tl.program_id(0) % rows, tl.program_id(0) // rows % groups
    image = (tl.program_id(0) // rows // groups).to(tl.int64)
    i, c = tile * NEW + tl.arange(0, NEW), group * CHANNELS + tl.arange(0, CHANNELS)
    size = _size(part + image * blocks * m, i, blocks, m, SUMMED)
    inverse = 1.0 / tl.maximum(size, smallest)
    x += image * x_image
    y += image * y_image
    weights += image * n * wide
    acc = tl.zeros((NEW, CHANNELS), tl.float32)
    for start in range(0, n, OLD):
        j = start + tl.arange(0, OLD)
        inside = (j[:, None] < n) & (i[None, :] < wide)
        share = tl.load(weights + j[:, None] * wide + i[None, :], mask=inside, other=0.0)
        if NORMALISED:  # before they are rounded: float16 has no numbers for tiny ones
            share *= inverse[None, :]
        inside = (j[:, None] < n) & (c[None, :] < channels)
        old = tl.load(x + (isolated + j[:, None]) * x_row + c[None, :], mask=inside, other=0.0)
        acc = dot(tl.trans(share.to(old.dtype)), old, acc, PRECISION, WIDEN)
    if not NORMALISED:
        acc *= inverse[:, None]
    inside = (i[:, None] < m) & (c[None, :] < channels)
    tl.store(y + (isolated + i[:, None]) * channels + c[None, :], acc.to(y.dtype.element_ty), mask=inside)
    sizes += image * size_image
    if group == 0:
        tl.store(sizes + isolated + i, size, mask=i < m)
    if tile == 0:
        _copy(y, sizes, x, c, isolated, channels, x_row, group)


def _assign(
    products: Tensor, inverse: Tensor, index: Tensor, mass: Tensor | None, reading: Reading, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """W transposed, each share times the mass of its old token, (B, n, m) in ``dtype``; partial sums of its columns."""
    (batch, n, _), m = products.shape, index.shape[1]
    wide, blocks = triton.cdiv(m, ALIGNED) * ALIGNED, triton.cdiv(n, ASSIGN.rows)
    weights = torch.empty(batch, n, wide, device=index.device, dtype=dtype)
    part = torch.empty(batch, blocks, m, device=index.device, dtype=torch.float32)
    columns = min(ASSIGN.columns, padded(wide))
    with on_device(index):
        assign_kernel[(batch * blocks,)](
            weights, part, products, inverse, index, inverse if mass is None else mass, n, m,
            0 if mass is None else mass.stride(0), products.stride(1), wide, float(reading.kappa), float(reading.tau),
            SMALLEST_SUM, MASKED=reading.gate == "mask", HAS_MASS=mass is not None, WHOLE=wide <= columns,
            ROWS=ASSIGN.rows, COLUMNS=columns, **ASSIGN.options,
        )  # fmt: skip
    return weights, part


def _down(y: Tensor, sizes: Tensor, x: Tensor, weights: Tensor, part: Tensor) -> None:
    """Y = W X with the isolated tokens in front, and the sizes, into ``y`` (B, M, C) and ``sizes`` (B, M)."""
    (batch, blocks, m), n, channels = part.shape, weights.shape[1], x.shape[2]
    launch = DOWN[is_half(weights.dtype)]
    columns = min(launch.columns, padded(channels))
    grid = (batch * triton.cdiv(m, launch.rows) * triton.cdiv(channels, columns),)
    with on_device(x):
        down_kernel[grid](
            y, sizes, x, weights, part, n, m, blocks, x.shape[1] - n, channels, x.stride(0), x.stride(1), y.stride(0),
            sizes.stride(0), weights.stride(1), SMALLEST_SUM, NORMALISED=weights.dtype != x.dtype, NEW=launch.rows,
            CHANNELS=columns, OLD=launch.depth, SUMMED=SUMMED, PRECISION=precision(x), WIDEN=widened(x),
            **launch.options,
        )  # fmt: skip


def _some(
    out: Answer, x: Tensor, features: Tensor, ranks: Tensor, mass: Tensor | None, behind: int, reading: Reading
) -> None:
    """``transform`` of images whose Gram matrices are in memory together, into tensors that there are."""
    y, sizes, index = out
    products, inverse = gram(features)
    if reading.redundancy:
        ranks = novelty(products, inverse, ranks, behind)
    select(index, ranks, behind)
    stored = torch.float32 if x.dtype == torch.float16 else x.dtype
    weights, part = _assign(products, inverse, index, mass, reading, stored)
    _down(y, sizes, x, weights, part)


def transform(
    x: Tensor, features: Tensor, scores: Tensor, mass: Tensor | None, keep: int, prefix: int, reading: Reading
) -> Answer:
    """Select, assign and transform (Eq. 2-8), as ``ttf.ops.plain.transform``."""
    (batch, tokens, channels), n = x.shape, features.shape[1]
    isolated = tokens - n
    out = (
        torch.empty(batch, keep, channels, device=x.device, dtype=x.dtype),
        torch.empty(batch, keep, device=x.device, dtype=torch.float32),
        torch.empty(batch, keep - isolated, device=x.device, dtype=torch.int64),
    )
    x, features = rows_in_memory(x), rows_in_memory(features)
    ranks = rows_in_memory(scores.float()[:, prefix:])
    mass = None if mass is None else rows_in_memory(mass.float())
    for images in slices(batch, max(1, WORKSPACE // (4 * n * n))):
        some = (out[0][images], out[1][images], out[2][images])
        own = None if mass is None else mass[images]
        _some(some, x[images], features[images], ranks[images], own, prefix - isolated, reading)
    return out
