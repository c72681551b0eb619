"""What the kernels share: products of tiles, precision, where they are launched; and the sizes of all tiles.

How the sizes were found stands in docs/performance.md: ``scripts/operators.py device=cuda`` times others beside them.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ttf.ops.kernels import INTERPRETED

Precision = Literal["ieee", "tf32x3"]
LOG2E = 1.4426950408889634
LN2 = 0.6931471805599453


class Launch(NamedTuple):
    """How a kernel is launched.

    Attributes:
        rows, columns: of a tile of its answer (of the map, for attention).
        depth: of the products that go into it; 0 where there are none.
        warps, stages: of triton.
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int

    @property
    def options(self) -> dict[str, int]:
        """Triton's own."""
        return {"num_warps": self.warps, "num_stages": self.stages}


# By half precision or not.
GRAM = {True: Launch(64, 64, 64, 4, 3), False: Launch(64, 64, 32, 4, 2)}
DOWN = {True: Launch(64, 128, 64, 4, 3), False: Launch(64, 64, 32, 4, 2)}
NOVELTY = Launch(16, 256, 0, 4, 2)
RANKS = Launch(64, 128, 0, 4, 2)
ASSIGN = Launch(16, 256, 0, 4, 2)
# By half precision or not and by the padded number of channels of a head: a block of queries by one of keys.
KEYS = {(True, 64): Launch(128, 64, 0, 4, 3), (True, 128): Launch(128, 64, 0, 8, 2)}
SUMS = {(True, 64): Launch(64, 64, 0, 4, 3), (True, 128): Launch(64, 64, 0, 4, 2)}
OTHER_KEYS = Launch(32, 32, 0, 4, 2)
# The same, all keys in one tile of up to that many.
WHOLE = {
    (True, 64): Launch(64, 256, 0, 4, 2),
    (True, 128): Launch(64, 256, 0, 8, 2),
    (False, 64): Launch(32, 64, 0, 4, 2),
}
NO_WHOLE = Launch(32, 0, 0, 4, 2)


def is_half(dtype: torch.dtype) -> bool:
    """Whether products of such numbers are exact in float32."""
    return dtype in (torch.float16, torch.bfloat16)


def padded(length: int, least: int = 16) -> int:
    """The next power of two, at least 16: what a side of a tile has to be."""
    return max(least, triton.next_power_of_2(length))


def head_key(x: Tensor) -> tuple[bool, int]:
    """How tables of attention name the heads (B, H, N, D) of x."""
    return is_half(x.dtype), max(64, padded(x.shape[-1]))


def precision(*parts: Tensor) -> Precision:
    """Of products: of float32 numbers from three of tensor cores each, which keeps nearly all of their digits."""
    return "ieee" if INTERPRETED or all(is_half(part.dtype) for part in parts) else "tf32x3"


def on_device(x: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device, so make it that of x."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def rows_in_memory(x: Tensor) -> Tensor:
    """x with its last dimension contiguous, as it is where it can be."""
    return x if x.stride(-1) == 1 else x.contiguous()


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
def cosines(products, own, others):
    """Products (R, K) of tokens as cosines, from the inverse norms of both (R) and (K), rounding clipped to [-1, 1]."""
    return tl.minimum(tl.maximum(products * others[None, :] * own[:, None], -1.0), 1.0)
