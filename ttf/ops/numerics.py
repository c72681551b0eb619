"""Small numerical tools that the operators share."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor


def full_precision(x: Tensor) -> torch.autocast:
    """Context without autocast on the device of x: what decides which token goes where is computed in float32."""
    return torch.autocast(x.device.type, enabled=False)


def can_inspect(x: Tensor) -> bool:
    """Whether looking at the values is free: eager, on a CPU, not while compiling, exporting, tracing or counting."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    return x.device.type == "cpu" and not isinstance(x, FakeTensor)  # which has a shape and no values


def require_finite(x: Tensor, what: str) -> None:
    """Raise ``ValueError`` if x (on a CPU, in eager mode; elsewhere nothing is looked at) has a NaN or infinity."""
    # one sum instead of a look at every value: it is 20 times cheaper, and not finite if any value is not
    if can_inspect(x) and not bool(torch.isfinite(x.detach().sum(dtype=torch.float32))):
        raise ValueError(f"{what} contain NaN or infinite values: check the input images and the weights")
