"""What the kernels share: one tile of a matrix product, of cosines, of gated logits; and where they are launched."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from ttf.ops.kernels import INTERPRETED

Precision = Literal["ieee", "tf32x3"]


def on_device(x: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device, so make it that of x."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def widened(x: Tensor) -> bool:
    """Whether a product of x has to be widened: the interpreter keeps bfloat16 as integers, which it would multiply."""
    return INTERPRETED and x.dtype == torch.bfloat16


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr, WIDEN: tl.constexpr):
    """a @ b + acc, accumulated in float32; WIDEN changes no product, for those of half-precision numbers are exact."""
    if WIDEN:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def cosine_tile(
    rows, row_count, columns, column_count, i, j, features,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, FEATURES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Cosines of the unit vectors i of ``rows`` and j of ``columns``, clipped to [-1, 1]: (ROWS, COLUMNS) float32."""
    acc = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, features, FEATURES):
        f = start + tl.arange(0, FEATURES)
        inside = (i[:, None] < row_count) & (f[None, :] < features)
        a = tl.load(rows + i[:, None] * features + f[None, :], mask=inside, other=0.0)
        inside = (j[:, None] < column_count) & (f[None, :] < features)
        b = tl.load(columns + j[:, None] * features + f[None, :], mask=inside, other=0.0)
        acc = tl.dot(a, tl.trans(b), acc, input_precision=PRECISION)
    return tl.minimum(tl.maximum(acc, -1.0), 1.0)


@triton.jit
def logit_tile(
    chosen, units, index, image, i, j, m, n, features, kappa, tau,
    MASKED: tl.constexpr, NEW: tl.constexpr, OLD: tl.constexpr, FEATURES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gated logits (Eq. 3 and the numerator of Eq. 5) of new tokens i and old tokens j: (NEW, OLD) float32.

    Minus infinity where the gate is a mask and closed, and for i >= m. Both kernels that need logits call this with the
    same tile, so that a cosine beside kappa falls on the same side in both.
    """
    cosines = cosine_tile(
        chosen + image * m * features, m, units + image * n * features, n, i, j, features, NEW, OLD, FEATURES, PRECISION
    )
    own = tl.load(index + image * m + i, mask=i < m, other=-1)
    cosines = tl.where(own[:, None] == j[None, :], 1.0, cosines)
    closed = float("-inf") if MASKED else 0.0
    logits = tl.where(cosines < kappa, closed, cosines * tau)
    return tl.where(i[:, None] < m, logits, float("-inf"))
