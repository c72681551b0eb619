"""The public functions: apply, remove, applied, trace, twin, plan."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ttf import hosts
from ttf.arguments import Arguments, check_options
from ttf.core import entry
from ttf.core.plan import Observer, Plan
from ttf.methods.base import Method
from ttf.ops.numerics import full_precision
from ttf.ops.reduction import LocalReduction, Reduction
from ttf.schedule import Schedule


def apply(
    model: nn.Module,
    method: str | Method = "token_transform",
    ratio: float | None = None,
    blocks: Sequence[int] | None = None,
    recover: bool | str = False,
    *,
    budget: float | None = None,
    preset: str | None = None,
    rounding: str | None = None,
    schedule: str | Path | Schedule | None = None,
    recover_at: str | None = None,
    windows: str | None = None,
    shift: str | None = None,
    reduce_after: str | None = None,
    **options: Any,
) -> nn.Module:
    """Compress the tokens of ``model`` in place, without training. A second call replaces the first.

    Parameters, buffers and ``state_dict`` keys stay as they are; ``remove`` restores the exact behaviour.

    Args:
        model: a supported host, see ``ttf.hosts.names()``.
        method: name of a method, or a method object.
        ratio: keep ratio in (0, 1]: share of the current patch tokens kept at each reducing block; 1 changes nothing.
            None: 0.7.
        blocks: 0-based blocks to reduce at; None takes the family's default (3, 6, 9 of 12).
        recover: give dense tokens back at the end of the blocks: True or "nearest" (Eq. 9-10), "transpose" (the
            method's own way back: W transposed, Hourglass's reconstruction).
        budget: in place of ratio: the share of the model's multiply-accumulates that may be left for images of its own
            size, in (0, 1]; the largest keep ratio within it is found by counting shapes (seconds). Without
            blocks, rounding and schedule it says where to reduce, too, as ``schedule="auto"`` does.
        preset: of ``token_transform`` alone: "default" or "paper" (the literal equations).
        rounding: of the number of tokens: "floor" (the default), "round" or "ceil".
        schedule: "late" (``ttf.schedule.Late`` of ratio and blocks, for heads that read the class token alone); "auto",
            from a budget: late, at ``ttf.schedule.late_blocks``, for those heads, at ``early_blocks`` for a Segmenter,
            whose tokens come back once, the family's blocks for others; or, in place of ratio, blocks and rounding, a
            ``Schedule`` or the file of one that ``ttf.search`` wrote.
        recover_at: where dense tokens come back, for models with a choice (Segmenter: "backbone" or "masks").
        windows: of Swin: "places" (tokens keep the place of their informative token; any number of them) or "grid"
            (what is left of a window becomes a smaller one, Hourglass's way).
        shift: of Swin: "kept", or "none": windows stay apart once tokens were reduced.
        reduce_after: of Swin: "attention" (of a block), or the whole "block".
        **options: fields of the method (kappa, tau, feature, ...).

    Returns:
        ``model`` itself.

    Raises:
        ValueError: the model is not a supported host, a value is out of its range or of a wrong type, two arguments
            exclude each other, or one is not read by this method and schedule.
    """
    host = hosts.find(model)
    told = Arguments(ratio, blocks, rounding, schedule, recover, recover_at, windows, shift, reduce_after, budget)
    plan = told.plan(model, host, check_options(method, preset, options))
    entry.check_reached(model, plan)
    entry.leave_model(model)
    entry.enter(model, plan)
    return model


def remove(model: nn.Module) -> nn.Module:
    """Undo ``apply``: the model behaves bit for bit as before. Does nothing to a model that is not compressed.

    Returns:
        ``model`` itself.

    Raises:
        ValueError: the model is inside a wrapper (torch.compile, DataParallel).
    """
    hosts.refuse_wrapped(model)
    entry.leave_model(model)
    return model


def plan(model: nn.Module) -> Plan | None:
    """How ``model`` is compressed: its method, schedule and host; None where it is not.

    Raises:
        ValueError: the model is inside a wrapper (torch.compile, DataParallel).
    """
    hosts.refuse_wrapped(model)
    return entry.plan_of(model)


def twin(model: nn.Module) -> nn.Module:
    """A second module over the same parameters, to compress beside ``model``, which stays as it is.

    Hooks of the model fire in the twin, too. Where the model is compiled in place (``model.compile()``), its twin is
    not.

    Raises:
        ValueError: the model is inside a wrapper, or a part of it has a forward on the instance (accelerate's offload).
    """
    hosts.refuse_wrapped(model)
    return entry.twin(model)


@contextmanager
def applied(model: nn.Module, *args: Any, **kwargs: Any) -> Iterator[nn.Module]:
    """``apply`` for the length of a ``with`` block; afterwards the model is as it was, compressed or not."""
    hosts.refuse_wrapped(model)
    before = entry.saved(model)
    try:
        yield apply(model, *args, **kwargs)
    finally:
        entry.give_back(model, before)


@dataclass(frozen=True)
class LayerTrace:
    """What one reducing layer did.

    Attributes:
        block: number of the block, 0-based.
        kept: (B, M) int64, informative tokens as indices into the layer's own N tokens. Where the method does not name
            them (pooled cells, a fused token): the token that each new one takes most of.
        origin: (B, M) int64, the same as indices into the tokens of the first layer.
        W: (B, M, N) float32, the transformation matrix (Eq. 1).
        total: (B, M, N_first) float32, product of the matrices up to this layer.
        sizes: (B, M) float32 (Eq. 8).
        grid: (rows, columns) of the image's patches.
        prefix: number of prefix tokens P; token P + r * columns + c is the patch in row r, column c.
    """

    block: int
    kept: Tensor
    origin: Tensor
    W: Tensor
    total: Tensor
    sizes: Tensor
    grid: tuple[int, int]
    prefix: int


class _Recorder(Observer):
    """Keeps what the reducing blocks of one run did."""

    def __init__(self) -> None:
        self.layers: list[tuple[int, Reduction]] = []

    def reduction(self, block: int, reduction: Reduction) -> None:
        self.layers.append((block, reduction))


@torch.no_grad()
def trace(model: nn.Module, images: Tensor) -> list[LayerTrace]:
    """Run a compressed model on images and show what every reducing layer did.

    Args:
        model: after ``apply``; not changed, and safe to use elsewhere meanwhile. Its hooks fire.
        images: (B, 3, H, W), preprocessed.

    Returns:
        One ``LayerTrace`` per reducing layer, first to last; empty at ratio 1.

    Raises:
        ValueError: the model is not compressed, or inside a wrapper.
    """
    current = plan(model)
    if current is None:
        raise ValueError("the model is not compressed: call ttf.apply(model) first")
    if not isinstance(images, Tensor) or images.ndim != 4:
        raise ValueError(f"images are a tensor (B, 3, H, W), got {getattr(images, 'shape', type(images).__name__)}")
    recorder = _Recorder()
    entry.twin(current.host.runs(model), lambda plan: replace(plan, observer=recorder))(images)
    height, width = images.shape[-2:]
    return _layers(recorder.layers, current.host.grid(model, (height, width)), current.prefix)


def _kept(reduction: Reduction, matrix: Tensor) -> Tensor | None:
    """The token that each new one grew from, (B, M); None where the method does not name all of them."""
    kept = reduction.kept
    return None if kept is None or kept.shape[1] != matrix.shape[1] else kept


def _layers(found: list[tuple[int, Reduction]], grid: tuple[int, int], prefix: int) -> list[LayerTrace]:
    layers: list[LayerTrace] = []
    before: LayerTrace | None = None
    for block, reduction in found:
        matrix = reduction.matrix()
        with full_precision(matrix):
            total = matrix if before is None else matrix @ before.total
        named = _kept(reduction, matrix)
        if named is None:
            kept, origin = matrix.argmax(-1), total.argmax(-1)
        else:
            kept, origin = named, named if before is None else before.origin.gather(1, named)
        layers.append(LayerTrace(block, kept, origin, matrix, total, reduction.sizes, grid, prefix))
        before = before if isinstance(reduction, LocalReduction) else layers[-1]
    return layers
