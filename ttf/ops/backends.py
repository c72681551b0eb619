"""Who runs the two operators of a reducing layer: the one place where that is decided.

* "compiled": the C++ functions of ``ttf.ops.native``, in float32 on a CPU, where they are compiled.
* "triton": the kernels of ``ttf.ops.kernels``, on a GPU that has passed their contract (``ttf.ops.kernels.trust``).
* "plain": torch's own operators, everywhere else.

In eager and in compiled code each of the two is one operator (``ttf.ops.library``); torch's own run one by one where
somebody looks at them (``seen``). Imports torch alone.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ttf.ops import native
from ttf.ops.kernels import DTYPES, available, trust
from ttf.ops.numerics import recorded, transforming

Runner = Literal["compiled", "triton", "plain"]
NAMES = ("auto", "plain", "triton")

_chosen = "auto"


class Backend:
    """A choice that is made; at the end of a ``with`` block the one before it counts again."""

    def __init__(self, name: str) -> None:
        global _chosen
        self._before, _chosen = _chosen, name

    def __enter__(self) -> Backend:
        return self

    def __exit__(self, *_: Any) -> None:
        global _chosen
        _chosen = self._before


def backend(name: str) -> Backend:
    """Choose who runs the operators: ``backend("plain")`` from now on, ``with backend("plain"):`` for a while.

    The choice is the process's, for all its threads. Code that torch.compile made follows it.

    Args:
        name: "auto": compiled operators on a CPU and Triton kernels on a GPU where they can, else plain ones. "plain":
            torch's operators everywhere. "triton": the Triton kernels on any GPU, whether or not it has passed their
            contract; elsewhere as "auto".

    Raises:
        ValueError: another name, or "triton" where it cannot run.
    """
    if name not in NAMES:
        raise ValueError(f"backend must be one of {', '.join(NAMES)}, got {name!r}")
    if name == "triton" and not any(available(torch.device(kind)) for kind in _devices()):
        raise ValueError('backend "triton" needs a GPU and the package triton, without TTF_KERNELS=0: use "auto"')
    return Backend(name)


def _devices() -> tuple[str, ...]:
    return ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)


def runner(device: torch.device, *dtypes: torch.dtype) -> Runner:
    """Who runs the operators for tensors on a device with these dtypes, by the choice of ``backend``."""
    if _chosen != "plain" and available(device) and all(_runs_kernels(device, dtype) for dtype in dtypes):
        return "triton"
    fits = device.type == "cpu" and all(dtype == torch.float32 for dtype in dtypes)
    return "compiled" if fits and _chosen != "plain" and native.loaded() else "plain"


def _runs_kernels(device: torch.device, dtype: torch.dtype) -> bool:
    return dtype in DTYPES and (_chosen == "triton" or trust.passed(device, dtype))


def learning(*tensors: Tensor | None) -> bool:
    """Whether a gradient is wanted with respect to one of these tensors."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def seen(*tensors: Tensor) -> bool:
    """Whether torch's own operators have to run one by one: somebody differentiates, transforms, records or fuses them.

    That is with a gradient, under torch.func, in exported programs (which then hold nothing but torch's operators), for
    distributed tensors, and in compiled code that has nothing better to call.
    """
    if learning(*tensors) or transforming() or recorded() or any(map(is_traceable_wrapper_subclass, tensors)):
        return True
    plain = runner(tensors[0].device, *(tensor.dtype for tensor in tensors)) == "plain"
    return plain and torch.compiler.is_compiling()
