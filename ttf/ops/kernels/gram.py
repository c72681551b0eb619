"""X X^T from the tokens themselves, and the redundancy-aware score from it.

Products of half-precision numbers are exact in float32, so tensor cores give float32 cosines at the speed of half
precision; the norms are the roots of the diagonal. Shapes: B batch, n tokens that take part, p patch tokens behind the
others among them, F features.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ttf.ops.kernels.tiles import GRAM, NOVELTY, cosines, dot, is_half, on_device, padded, precision, widened

ALIGNED = 16  # rows of the matrix start at multiples of so many numbers, so that they are read in vectors
SMALLEST_NORM = 1e-12  # as in torch's normalize


@triton.jit(do_not_specialize=["n"])
def gram_kernel(
    gram, inverse, x, n, features, x_image, x_row, row, smallest,
    TILE: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """One tile of the lower triangle, mirrored into the upper one; those on the diagonal give the inverse norms."""
    side = tl.cdiv(n, TILE)
    tiles = side * (side + 1) // 2
    tile, image = tl.program_id(0) % tiles, (tl.program_id(0) // tiles).to(tl.int64)
    # the triangle is numbered row by row; the root is rounded, so it may be off by one either way
    a = ((tl.sqrt(8.0 * tile.to(tl.float32) + 1.0) - 1.0) * 0.5).to(tl.int32)
    a = tl.where(a * (a + 1) // 2 > tile, a - 1, a)
    a = tl.where((a + 1) * (a + 2) // 2 <= tile, a + 1, a)
    b = tile - a * (a + 1) // 2
    i, j, f = a * TILE + tl.arange(0, TILE), b * TILE + tl.arange(0, TILE), tl.arange(0, DEPTH)
    x += image * x_image
    acc = tl.zeros((TILE, TILE), tl.float32)
    for start in range(0, features, DEPTH):
        there = (start + f[None, :]) < features
        own = tl.load(x + i[:, None] * x_row + start + f[None, :], mask=(i[:, None] < n) & there, other=0.0)
        other = tl.load(x + j[:, None] * x_row + start + f[None, :], mask=(j[:, None] < n) & there, other=0.0)
        acc = dot(own, tl.trans(other), acc, PRECISION, WIDEN)
    gram += image * n * row
    tl.store(gram + i[:, None] * row + j[None, :], acc, mask=(i[:, None] < n) & (j[None, :] < n))
    if a == b:
        squares = tl.sum(tl.where(i[:, None] == j[None, :], acc, 0.0), 1)
        tl.store(inverse + image * n + i, 1.0 / tl.maximum(tl.sqrt(squares), smallest), mask=i < n)
    else:
        tl.store(gram + j[:, None] * row + i[None, :], tl.trans(acc), mask=(j[:, None] < n) & (i[None, :] < n))


@triton.jit(do_not_specialize=["n", "score_image"])
def novelty_kernel(
    out, gram, inverse, scores, n, behind, score_image, row, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """Scores of one block of patch tokens j, against all patch tokens i."""
    p = n - behind
    blocks = tl.cdiv(p, ROWS)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    j = tl.program_id(0) % blocks * ROWS + tl.arange(0, ROWS)
    gram += image * n * row + behind * row + behind
    inverse += image * n + behind
    scores += image * score_image
    score = tl.load(scores + j, mask=j < p, other=0.0)
    own = tl.load(inverse + j, mask=j < p, other=0.0)
    said = tl.full((ROWS,), -1.0, tl.float32)
    for start in range(0, p, COLUMNS):
        i = start + tl.arange(0, COLUMNS)
        rival = tl.load(scores + i, mask=i < p, other=float("-inf"))
        others = tl.load(inverse + i, mask=i < p, other=0.0)
        products = tl.load(gram + j[:, None] * row + i[None, :], mask=(j[:, None] < p) & (i[None, :] < p), other=0.0)
        above = tl.where(rival[None, :] > score[:, None], cosines(products, own, others), -1.0)
        said = tl.maximum(said, tl.max(above, 1))
    tl.store(out + image * p + j, score * (1.0 - said), mask=j < p)


def gram(x: Tensor) -> tuple[Tensor, Tensor]:
    """Products of all tokens with each other, and the inverses of their norms.

    Args:
        x: (B, n, F), F contiguous.

    Returns:
        (B, n, n) float32 with rows at aligned addresses, and (B, n) float32, 1 / max(norm, 1e-12).
    """
    batch, n, features = x.shape
    row = triton.cdiv(n, ALIGNED) * ALIGNED
    products = torch.empty(batch, n, row, device=x.device, dtype=torch.float32)
    inverse = torch.empty(batch, n, device=x.device, dtype=torch.float32)
    launch = GRAM[is_half(x.dtype)]
    side = triton.cdiv(n, launch.rows)
    with on_device(x):
        gram_kernel[(batch * (side * (side + 1) // 2),)](
            products, inverse, x, n, features, x.stride(0), x.stride(1), row, SMALLEST_NORM,
            TILE=launch.rows, DEPTH=launch.depth, PRECISION=precision(x), WIDEN=widened(x), **launch.options,
        )  # fmt: skip
    return products[..., :n], inverse


def novelty(products: Tensor, inverse: Tensor, scores: Tensor, behind: int) -> Tensor:
    """Redundancy-aware score of the patch tokens: score_j = h_j (1 - max over {i: h_i > h_j} of cos(f_i, f_j)).

    Args:
        products, inverse: from ``gram``.
        scores: (B, p) float32 informativeness h of the patch tokens, p contiguous.
        behind: how many of the n tokens stand in front of the patch tokens.

    Returns:
        (B, p) float32.
    """
    batch, n, _ = products.shape
    out = torch.empty(batch, n - behind, device=scores.device, dtype=torch.float32)
    columns = min(NOVELTY.columns, padded(n - behind))
    with on_device(scores):
        novelty_kernel[(batch * triton.cdiv(n - behind, NOVELTY.rows),)](
            out, products, inverse, scores, n, behind, scores.stride(0), products.stride(1),
            ROWS=NOVELTY.rows, COLUMNS=columns, **NOVELTY.options,
        )  # fmt: skip
    return out
