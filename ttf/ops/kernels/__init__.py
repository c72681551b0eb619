"""Triton kernels for inference on a GPU: attention with a number per key, its column sums, the transform.

``attention``, ``sums``, ``gram``, ``ranking`` and ``transform`` import triton and are imported by name, after
``available`` has said yes; ``contract``, ``trust``, ``fused`` and ``dispatch`` need torch alone. No kernel has a
gradient. ``ttf.ops.backends`` decides where they run: on a card that has passed ``trust``, unless TTF_KERNELS=0 (or
false, no, off) is in the environment when ttf is imported.

Numerical contract: the largest error against the plain operators in float64 on the same inputs. ``contract`` computes
it, in triton's interpreter for the tests, on a card before the kernels are trusted there.

* ``attention`` and ``summed_attention``: tokens, as a share of the largest absolute value, 1e-6 (1 + L) in float32, L
  being the largest absolute logit, 1e-3 in float16 and 8e-3 in bfloat16, which round the weights and the answer once
  each; column sums relative 3e-7 (1 + L) in any dtype: products of half-precision inputs are exact in float32, and
  everything behind them is float32.
* ``transform``: with the error of a cosine c = 3e-7 max(1, F / 64), F being the number of features (tensor cores
  truncate the running sum once for every 16 products: by up to F / 16 times 1.2e-7, by a fourth of that as a rule),
  sizes relative e = c (4 + tau) (plus 1e-3 e), for tau multiplies the rounding of a cosine; tokens, as a share of the
  largest absolute one, e in float32, in float16 and bfloat16 the rounding above where that is larger. The same tokens
  are informative, unless two scores are as close as c times the higher one; of equal scores the first token's counts as
  the higher.

In the interpreter bfloat16 is allowed twice its rounding: there numbers are cut off, not rounded.
A cosine nearer than c to the gate kappa may fall on either side of it, as in any float32 operator. Norms of tokens must
lie between 1e-18 and 1e18. No kernel uses atomics: two runs on one machine give the same bits.
"""

from __future__ import annotations

import importlib.util
import os

import torch

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LARGEST_HEAD = 128  # channels
HAS_TRITON = importlib.util.find_spec("triton") is not None
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # triton, too, reads it when a kernel is defined
SWITCHED_OFF = os.environ.get("TTF_KERNELS", "").strip().lower() in ("0", "false", "no", "off")


def available(device: torch.device) -> bool:
    """Whether the kernels can run there: triton is installed, and it is a GPU or triton's interpreter is on."""
    return HAS_TRITON and not SWITCHED_OFF and (device.type == "cuda" or INTERPRETED)
