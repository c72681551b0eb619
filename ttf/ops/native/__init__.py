"""The operators of a reducing layer as one C++ function each, for inference on a CPU in float32.

``operators.cpp`` and its headers are compiled once a machine by ``python -m ttf.ops.native`` (``make setup`` does it, a
quarter of a minute) and used from then on; without a compiler the plain operators run: the same answers, slower. With
TTF_NATIVE=0 (or false, no, off) in the environment when ttf is imported, the library is not even looked for. Who runs
what is decided in ``ttf.ops.backends``; the operators are defined, and called, in ``ttf.ops.library``.

Numerical contract: the largest error against the plain operators in float64 on the same float32 inputs, as tested over
shapes, odd sizes, strides and both gates.

* ``native_summed_attention``: tokens 1e-6 (1 + L) of the largest absolute value, L being the largest absolute logit;
  column sums relative 1e-6 (4 + L).
* ``native_transform``: sizes relative e = 3e-7 (4 + tau) (plus 1e-3 e), for tau multiplies the rounding of a cosine;
  tokens, as a share of the largest absolute one, e. The same tokens are informative, unless two scores are as close as
  their rounding; of equal scores the first token's counts as the higher.

A cosine nearer than 1e-6 to the gate kappa may fall on either side of it, as in any float32 operator. No atomics in
sums: two runs on one machine with as many threads give the same bits.

Whatever they are called with, they read and write only what the shapes of their arguments cover: everything else is a
RuntimeError. The tests run them with the compiler's checks of addresses.
"""

from __future__ import annotations

import os
import warnings

import torch

from ttf.ops.native import build

NO = ("0", "false", "no", "off")

_loaded = False


def switched_off() -> bool:
    """Whether the environment has TTF_NATIVE=0, false, no or off."""
    return os.environ.get("TTF_NATIVE", "").strip().lower() in NO


def load() -> bool:
    """Load the compiled operators. False where there are none, or none that may be loaded: then a warning says why."""
    global _loaded
    if _loaded or switched_off():
        return _loaded
    try:
        _loaded = _load()
    except (ValueError, OSError, RuntimeError) as error:
        warnings.warn(f"the plain operators run, the compiled ones cannot be loaded: {error}", stacklevel=2)
    return _loaded


def _load() -> bool:
    try:
        path = build.library()
    except ValueError:  # no cache, so nothing was compiled
        return False
    if not path.exists():
        return False
    build.check(path)
    torch.ops.load_library(path)
    return True


def loaded() -> bool:
    """Whether the compiled operators are there."""
    return _loaded
