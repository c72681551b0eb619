"""The operators of a reducing layer as one C++ function each, for inference on a CPU in float32.

``operators.cpp`` and its headers are compiled once a machine by ``python -m ttf.ops.native`` (``make setup`` does it, a
quarter of a minute) and used from then on; without a compiler, or with TTF_NATIVE=0, the plain operators run: the same
answers, slower. Training, half precision, compiled and exported code have the plain operators in any case.

Numerical contract: the largest error against the plain operators in float64 on the same float32 inputs, as tested over
shapes, odd sizes, strides and both gates.

* ``summed_attention``: tokens 1e-6 (1 + L) of the largest absolute value, L being the largest absolute logit; column
  sums relative 1e-6 (4 + L).
* ``transform``: shares absolute e = 3e-7 (4 + tau), for tau multiplies the rounding of a cosine; sizes relative e (plus
  1e-3 e); tokens, as a share of the largest absolute one, e. The same tokens are informative, unless two scores are as
  close as their rounding; of equal scores the first token's counts as the higher.

A cosine nearer than 1e-6 to the gate kappa may fall on either side of it, as in any float32 operator. No atomics: two
runs on one machine with as many threads give the same bits.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ttf.ops.native.build import library
from ttf.ops.numerics import can_inspect


def _attention_flops(q: Sequence[int], k: Any, v: Any, *_: Any, **__: Any) -> int:
    batch, heads, tokens, dim = q
    return 4 * batch * heads * tokens**2 * dim


def _transform_flops(
    x: Sequence[int], features: Sequence[int], scores: Any, mass: Any, keep: int, prefix: int, kappa: float, tau: float,
    mask: bool, redundancy: bool, **_: Any,
) -> int:  # fmt: skip
    batch, tokens, channels = x
    n, m = features[1], keep - (tokens - features[1])
    sizes = 0 if mass is None else m  # a product, too
    return 2 * batch * n * ((n if redundancy else m) * features[2] + m * channels + sizes)


@cache
def available() -> bool:
    """Load the compiled operators: False where they are not compiled for this machine."""
    path = library()
    if not path.exists():
        return False
    try:
        torch.ops.load_library(path)
    except OSError as error:
        warnings.warn(f"the plain operators run, {path} cannot be loaded: {error}", stacklevel=2)
        return False
    register_flop_formula(torch.ops.ttf.summed_attention)(_attention_flops)
    register_flop_formula(torch.ops.ttf.transform)(_transform_flops)
    return True


def switched_on() -> bool:
    """Whether the operators are compiled, and the environment has no TTF_NATIVE=0."""
    return os.environ.get("TTF_NATIVE") != "0" and available()


def enabled(*tensors: Tensor) -> bool:
    """Whether to run on these tensors: float32, on a CPU, with values to look at, and no gradient wanted."""
    if not all(can_inspect(tensor) and tensor.dtype == torch.float32 for tensor in tensors):
        return False
    return not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)) and switched_on()


def _rows(x: Tensor) -> Tensor:
    """x with the values of a row side by side in memory, and its rows apart."""
    return x if x.stride(-1) == 1 and x.stride(-2) >= x.shape[-1] else x.contiguous()


def summed_attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, first_row: int
) -> tuple[Tensor, Tensor]:
    """Attention (Eq. 7) and the column sums of its map (Eq. 2), of which a block at a time is in the cache.

    Args:
        q, k, v: (B, H, N, D).
        bias: (B, 1, 1, N), or None.
        scale: of the logits.
        first_row: number of queries at the front that do not count.

    Returns:
        output (B, H, N, D), heads side by side in memory, and column sums (B, N), mean over the heads.
    """
    assert q.shape == k.shape == v.shape and all(tensor.dtype == torch.float32 for tensor in (q, k, v))
    logs = None if bias is None else bias.float().reshape(q.shape[0], q.shape[2]).contiguous()
    return torch.ops.ttf.summed_attention(_rows(q), _rows(k), _rows(v), logs, scale, first_row)


def transform(
    x: Tensor, features: Tensor, scores: Tensor, mass: Tensor | None, keep: int, prefix: int, *,
    kappa: float, tau: float, mask: bool, redundancy: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Select, assign and transform (Eq. 2-8).

    Args:
        x: (B, N, C) tokens.
        features: (B, n, F) whose cosines count; the N - n tokens in front of these are isolated.
        scores: (B, N) informativeness.
        mass: (B, n) sizes of the old tokens, or None.
        keep: M, number of new tokens.
        prefix: number of prefix tokens P, isolated or not; all of them are kept.
        kappa, tau: threshold and inverse temperature of Eq. 3 and 5.
        mask: the gate leaves out what is below kappa instead of setting it to zero.
        redundancy: select by the redundancy-aware score.

    Returns:
        Y (B, M, C), sizes (B, M), and without the isolated tokens: which old tokens the new ones grew from (B, m)
        int64, and shares of the old tokens over the new ones (B, m, n), Eq. 5.
    """
    assert math.isfinite(tau) and x.shape[1] - features.shape[1] <= prefix < keep <= x.shape[1]
    masses = None if mass is None else _rows(mass.float())
    return torch.ops.ttf.transform(
        _rows(x), _rows(features), _rows(scores), masses, keep, prefix, kappa, tau, mask, redundancy
    )


available()  # at once: a counter of operators knows those alone that were there when it began
