"""Small numerical tools that the operators share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

SHOWN = 4


def full_precision(x: Tensor) -> torch.autocast:
    """Context without autocast on the device of x: what decides which token goes where is computed in float32."""
    return torch.autocast("cpu" if x.device.type == "meta" else x.device.type, enabled=False)  # meta has no autocast


def on_tensor_cores(x: Tensor) -> bool:
    """Whether products of x are exact in float32 at the speed of half precision: on a GPU, in float16 or bfloat16."""
    return x.is_cuda and x.dtype in (torch.float16, torch.bfloat16)


def products(a: Tensor, b: Tensor) -> Tensor:
    """Dot products of half-precision vectors (B, n, F) and (B, m, F) on a GPU, (B, n, m) float32, without copies."""
    return torch.bmm(a, b.transpose(1, 2), out_dtype=torch.float32)


def norms(x: Tensor) -> Tensor:
    """Euclidean norms over the last dimension, in float32 (float64 of such) without a copy of x."""
    return torch.linalg.vector_norm(x, dim=-1, dtype=torch.promote_types(x.dtype, torch.float32))


def transforming() -> bool:
    """Whether torch.func transforms what runs (vmap, grad); operators may then not write into tensors that they get."""
    return torch._C._are_functorch_transforms_active()


def recorded() -> bool:
    """Whether single operators are written down, by torch.export, the ONNX exporters, torch.jit.trace or make_fx."""
    if torch.compiler.is_compiling():
        return torch.compiler._is_exporting_flag  # is_exporting() is True in all compiled code of torch 2.10
    return torch.jit.is_tracing() or torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None


def has_values(x: Any) -> bool:
    """Whether x has values to look at, which may take a GPU's synchronisation.

    Not while compiling, exporting or tracing, and not of a tensor that stands for others: of torch.func, on the meta
    device, of another class (fake, distributed), a proxy.
    """
    if torch.compiler.is_compiling() or recorded() or type(x) not in (Tensor, torch.nn.Parameter):
        return False
    return not x.is_meta and not torch._C._functorch.is_functorch_wrapped_tensor(x)


def can_inspect(x: Any) -> bool:
    """Whether looking at the values of x is free: it has some, on a CPU."""
    return has_values(x) and x.device.type == "cpu"


class NotFiniteError(ValueError):
    """Values that are NaN or infinite, and which images they are of."""


def _images(x: Tensor) -> str:
    """Of a tensor (B, ...) that is not finite, the images it is so for, with what to check."""
    wrong = (~torch.isfinite(x.flatten(1)).all(dim=1)).nonzero().flatten().tolist()
    if len(wrong) == len(x):
        return "of every image contain NaN or infinite values: check the weights and the input images"
    some = ", ".join(map(str, wrong[:SHOWN])) + (", ..." if len(wrong) > SHOWN else "")
    return f"of image {some} of the batch (from 0) contain NaN or infinite values: check that input image"


def require_finite(x: Tensor, what: str) -> None:
    """Raise ``NotFiniteError`` if x (B, ...) is not finite; looked at on a CPU in eager mode alone."""
    # one sum instead of a look at every value: it is 20 times cheaper, and not finite if any value is not
    if can_inspect(x) and not bool(torch.isfinite(x.detach().sum(dtype=torch.float32))):
        if torch.isfinite(x).all():  # large values whose sum is not
            return
        raise NotFiniteError(f"{what} {_images(x.detach())}")


def as_numbers(compare: Callable[..., Tensor], a: Tensor, b: Tensor | float, like: Tensor) -> Tensor:
    """``compare(a, b)``, torch.le or the like, as 0 and 1 in the dtype and shape of ``like``.

    Several times faster than a mask of booleans.
    """
    if transforming():
        return compare(a, b).to(like.dtype)
    return compare(a, b, out=like.new_empty(like.shape))
