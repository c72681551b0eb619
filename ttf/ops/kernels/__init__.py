"""Triton kernels for inference on a GPU: the steps of the transform that else hold an (n, n) or (n, m) matrix.

``sums`` (Eq. 2 without the attention map) and ``transform`` (Eq. 3-8 without the assignment matrix) import triton and
are imported by name, after ``available`` has said yes; ``fused`` and ``dispatch`` need torch alone. No kernel has a
gradient. They run where ``ttf.ops.backend("triton")`` asks for them.

Numerical contract: the largest error against the plain operators in float64 on the same inputs. The tests hold the
kernels to it in triton's interpreter and compile them for sm_90; on a GPU they have not run yet.

* ``column_sums``: relative 3e-7 (1 + L), L being the largest absolute logit, for float32, float16 and bfloat16 alike:
  products of half-precision inputs are exact in float32, and everything behind them is float32.
* ``novelty``: 1e-6 of the score.
* ``assignment_lse``: absolute e = 3e-7 (4 + tau), for tau multiplies the rounding of a cosine.
* ``transform_down``: sizes relative e (plus 1e-3 e); tokens, as a share of the largest absolute one, e / 4 in float32,
  1e-3 in float16 and 8e-3 in bfloat16, which round the weights and the answer once each.

A cosine nearer than 1e-6 to the gate kappa may fall on either side of it, as in any float32 operator.
No kernel uses atomics: two runs on one machine give the same bits.
"""

from __future__ import annotations

import importlib.util
import os

import torch

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
HAS_TRITON = importlib.util.find_spec("triton") is not None
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # triton, too, reads it when a kernel is defined


def available(device: torch.device) -> bool:
    """Whether the kernels can run there: triton is installed, and it is a GPU or triton's interpreter is on."""
    return HAS_TRITON and (device.type == "cuda" or INTERPRETED)
