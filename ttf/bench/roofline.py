"""Where the time of a forward pass goes, and the least that this machine could need for it.

An operator's time on the roofline is the larger of its multiply-accumulates over the rate of a large matrix product and
the bytes that it reads and writes over the bandwidth of a large copy, both measured here; that of a pass the sum over
its operators.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, shape_wrapper

from ttf import api
from ttf.bench.arithmetic import again
from ttf.measure.gmacs import UNCOUNTED

PRODUCTS, ATTENTION, REST = "matrix products", "fused attention", "norms, activations, copies"
SUMMED, TRANSFORM = "attention with column sums", "transform"
OPERATORS = {torch.ops.ttf.summed_attention: SUMMED, torch.ops.ttf.transform: TRANSFORM}
KINDS = (PRODUCTS, ATTENTION, SUMMED, TRANSFORM, REST)


@dataclass(frozen=True)
class Rates:
    """What this machine does at best, with the threads and the dtype at hand.

    Attributes:
        gmacs_per_s: multiply-accumulates of a large matrix product, 1e9 per second.
        gb_per_s: bytes read and written by a large copy, 1e9 per second.
    """

    gmacs_per_s: float
    gb_per_s: float


@dataclass(frozen=True)
class Part:
    """One kind of work in a forward pass, an image.

    Attributes:
        gmacs: multiply-accumulates, 1e9.
        gb: bytes read and written, 1e9.
        roofline_ms: least time.
        measured_ms: median time.
    """

    gmacs: float
    gb: float
    roofline_ms: float
    measured_ms: float


def _seconds(run: Callable[[], object], device: torch.device, rounds: int = 9) -> float:
    """The best of some rounds."""
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begin)
    return min(times)


def rates(device: torch.device, dtype: torch.dtype = torch.float32, side: int = 2048, mib: int = 256) -> Rates:
    """Measure both rates. ``side`` of the square matrices, ``mib`` of the array that is copied."""
    a = torch.randn(side, side, device=device).to(dtype)
    source = torch.zeros(mib * 2**20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return Rates(
        side**3 / 1e9 / _seconds(lambda: a @ a, device),
        2 * source.numel() / 1e9 / _seconds(lambda: target.copy_(source), device),
    )


def _kind(name: str, macs: float) -> str:
    """Of one of torch's own operators."""
    if "attention" in name:
        return ATTENTION
    return PRODUCTS if macs else REST


def _bytes(values: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tree_leaves(values) if isinstance(t, Tensor))


class _Log(TorchDispatchMode):
    """Sums time, multiply-accumulates and bytes of every operator, by kind; ``phase`` overrides the kind."""

    def __init__(self, known: Rates, device: torch.device) -> None:
        super().__init__()
        self.known, self.device, self.phase = known, device, ""
        self.sums: dict[str, list[float]] = defaultdict(lambda: [0.0] * 4)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, packet = kwargs or {}, func._overloadpacket
        formula: Any = shape_wrapper(UNCOUNTED[packet]) if packet in UNCOUNTED else flop_registry.get(packet)
        if formula is None:
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        begin = time.perf_counter()
        out = func(*args, **kwargs)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        seconds = time.perf_counter() - begin
        macs = formula(*args, **kwargs, out_val=out) / 2e9 if formula else 0.0
        moved = 0.0 if func.is_view else _bytes((args, kwargs, out)) / 1e9
        least = max(macs / self.known.gmacs_per_s, moved / self.known.gb_per_s)
        kind = self.phase or OPERATORS.get(packet) or _kind(str(packet), macs)
        self.sums[kind] = [
            a + b for a, b in zip(self.sums[kind], (macs, moved, 1e3 * least, 1e3 * seconds), strict=True)
        ]
        return out

    def during(self, phase: str, run: Callable[..., Any]) -> Callable[..., Any]:
        """``run``, whose operators count as those of a phase."""

        def watched(*args: Any, **kwargs: Any) -> Any:
            outer, self.phase = self.phase, phase
            try:
                return run(*args, **kwargs)
            finally:
                self.phase = outer

        return watched


def _logged(model: nn.Module, log: _Log) -> nn.Module:
    """The model, or a twin of a compressed one in which all that the method does counts as the transform."""
    plan = api.plan(model)
    if plan is None:
        return model
    method, own = copy.copy(plan.method), type(plan.method)
    watched = type(own.__name__, (own,), {"__call__": log.during(TRANSFORM, own.__call__)})
    object.__setattr__(method, "__class__", watched)  # methods are frozen
    return again(model, method, plan.schedule)


@torch.inference_mode()
def parts(models: Sequence[nn.Module], images: Tensor, known: Rates, rounds: int = 7) -> list[dict[str, Part]]:
    """What each kind of work takes in some models, one after the other in every round, per image.

    Operators are timed one by one, so what Python does between them is in none of them.

    Args:
        models: in evaluation mode, on the device of ``images``.
        images: (B, 3, H, W).
        known: of this machine, with the same threads and dtype.
        rounds: timed rounds after one to warm up.

    Returns:
        For each model the kinds that it has, in the order of ``KINDS``.
    """
    logs: list[list[dict[str, list[float]]]] = [[] for _ in models]
    for number in range(1 + rounds):
        for model, kept in zip(models, logs, strict=True):
            log = _Log(known, images.device)
            watched = _logged(model, log)
            with log:
                watched(images)
            if number:
                kept.append(dict(log.sums))
    return [_medians(kept, len(images)) for kept in logs]


def _medians(kept: list[dict[str, list[float]]], batch: int) -> dict[str, Part]:
    found = [kind for kind in KINDS if kind in kept[0]]
    middle = {kind: [statistics.median(sums[kind][i] for sums in kept) / batch for i in range(4)] for kind in found}
    return {kind: Part(*values) for kind, values in middle.items()}
