"""When the kernels run: where they are switched on, can run, and nobody asks for a gradient.

They are off unless the environment has TTF_KERNELS=1: they have been compiled for a GPU and run in triton's
interpreter, but never yet on a GPU.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

from ttf.ops.kernels import available
from ttf.ops.kernels.fused import attention_with_lse


def enabled(*tensors: Tensor) -> bool:
    """Whether the kernels are to run on these tensors; compiled and exported code has the plain operators."""
    if os.environ.get("TTF_KERNELS") != "1" or torch.compiler.is_compiling():
        return False
    learning = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    return not learning and all(available(tensor) for tensor in tensors)


def summed_attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, first_row: int
) -> tuple[Tensor, Tensor]:
    """Fused attention and the column sums of its map: as ``ttf.ops.native.summed_attention``, output in v's dtype."""
    from ttf.ops.kernels.sums import column_sums  # imports triton

    out, lse = attention_with_lse(q, k, v, bias, scale)
    return out, column_sums(q, k, bias, lse, scale, first_row)
