"""The public functions: apply, remove, applied, trace."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from ttf import hosts, methods
from ttf.methods.base import Method
from ttf.ops.numerics import full_precision
from ttf.ops.reduction import RECOVERIES, LocalReduction, Recovery, Reduction
from ttf.schedule import KeepRatio, Late, Schedule
from ttf.stack import CompressedStack, Plan, State, twin_with


def _recovery(recover: bool | str) -> Recovery | None:
    if isinstance(recover, bool):
        return "nearest" if recover else None
    if recover not in RECOVERIES:
        raise ValueError(f"recover must be True, False or one of {', '.join(RECOVERIES)}, got {recover!r}")
    return cast(Recovery, recover)


def _placed(host: Any, place: str | None) -> hosts.Host:
    """The host with the place where dense tokens come back, for hosts that have a choice."""
    if place is None:
        return host
    if not hasattr(host, "recover_at"):
        raise ValueError("this model has no choice of where tokens come back: leave recover_at out")
    return replace(host, recover_at=place)


def _schedule(
    ratio: float, blocks: Sequence[int] | None, host: hosts.Host, depth: int, options: dict[str, Any]
) -> Schedule:
    explicit = options.pop("schedule", None)
    rounding = options.pop("rounding", "floor")
    if explicit == "late":
        return Late(ratio, depth, None if blocks is None else tuple(blocks))
    if isinstance(explicit, str):
        raise ValueError(f'schedule must be "late" or a Schedule, got {explicit!r}')
    if explicit is not None:
        return explicit
    return KeepRatio(ratio, host.blocks(depth) if blocks is None else tuple(blocks), rounding)


def apply(
    model: nn.Module,
    method: str | Method = "token_transform",
    ratio: float = 0.7,
    blocks: Sequence[int] | None = None,
    recover: bool | str = False,
    **options: Any,
) -> nn.Module:
    """Compress the tokens of ``model`` in place, without training. A second call replaces the first.

    Parameters, buffers and ``state_dict`` keys stay as they are; ``remove`` restores the exact behaviour.

    Args:
        model: a supported host, see ``ttf.hosts.names()``.
        method: name of a method, or a method object.
        ratio: keep ratio in (0, 1]: share of the current patch tokens kept at each reducing block; 1 changes nothing.
        blocks: 0-based blocks to reduce at; None takes the family's default (3, 6, 9 of 12).
        recover: give dense tokens back at the end of the blocks: True or "nearest" (Eq. 9-10), "transpose" (the
            method's own way back: W transposed, Hourglass's reconstruction).
        **options: fields of the method (kappa, tau, feature, ...), ``preset`` ("default" or "paper"), ``rounding``
            ("floor", "round", "ceil") of the number of tokens, or ``schedule``: "late" (``ttf.schedule.Late``
            of ratio and blocks, for heads that read the class token alone) or a ``Schedule`` in place of both.
            Segmenter has ``recover_at``: "backbone" or "masks", see ``ttf.hosts.segmenter.DenseHost``.

    Returns:
        ``model`` itself.

    Raises:
        ValueError: the model is no supported host, or a value is out of its range.
    """
    host = _placed(hosts.find(model), options.pop("recover_at", None))
    container = _container(model, host.container)
    depth = host.first + len(container)
    schedule = _schedule(ratio, blocks, host, depth, options)
    hosts.check(schedule, host, depth)
    if isinstance(schedule, Late) and (recover or not host.reads_class_token(model)):
        raise ValueError("the late schedule is for heads that read the class token alone: use ratio and blocks instead")
    plan = Plan(methods.build(method, **options), schedule, host, host.prefix(model), _recovery(recover))
    return _install(model, plan)


def _container(model: nn.Module, path: str) -> nn.Sequential:
    return cast(nn.Sequential, model.get_submodule(path))


def _put(model: nn.Module, path: str, container: nn.Sequential) -> None:
    owner, _, name = path.rpartition(".")
    setattr(model.get_submodule(owner), name, container)


def _install(model: nn.Module, plan: Plan) -> nn.Module:
    remove(model)
    container = _container(model, plan.host.container)
    _put(model, plan.host.container, CompressedStack(container, plan))
    plan.host.enter(model)
    return model


def _stack(model: nn.Module) -> CompressedStack | None:
    for path, module in model.named_modules():
        if isinstance(module, CompressedStack) and module.plan.host.container == path:
            return module
    hosts.refuse_wrapped(model)
    return None


def remove(model: nn.Module) -> nn.Module:
    """Undo ``apply``: the model behaves bit for bit as before. Does nothing to a model that is not compressed.

    Returns:
        ``model`` itself.

    Raises:
        ValueError: the model is inside a wrapper (torch.compile, DataParallel).
    """
    stack = _stack(model)
    if stack is not None:
        stack.plan.host.leave(model)
        _put(model, stack.plan.host.container, stack.restored())
    return model


def plan(model: nn.Module) -> Plan | None:
    """How ``model`` is compressed: its method, schedule and host; None where it is not."""
    stack = _stack(model)
    return None if stack is None else stack.plan


def twin(model: nn.Module) -> nn.Module:
    """A second module over the same parameters, to compress beside ``model``, which stays as it is."""
    path = hosts.find(model).container
    return twin_with(model, path, _container(model, path))


@contextmanager
def applied(model: nn.Module, *args: Any, **kwargs: Any) -> Iterator[nn.Module]:
    """``apply`` for the length of a ``with`` block; afterwards the model is as it was, compressed or not."""
    stack = _stack(model)
    before = stack.plan if stack is not None else None
    try:
        yield apply(model, *args, **kwargs)
    finally:
        remove(model) if before is None else _install(model, before)


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


class _Recorder(CompressedStack):
    """A stack that also keeps the final state of its runs."""

    states: list[State]

    def run(self, x: Tensor, **kwargs: Any) -> State:
        self.states.append(super().run(x, **kwargs))
        return self.states[-1]


@torch.no_grad()
def trace(model: nn.Module, images: Tensor) -> list[LayerTrace]:
    """Run a compressed model on images and show what every reducing layer did.

    Args:
        model: after ``apply``; not changed, and safe to use elsewhere meanwhile.
        images: (B, 3, H, W), preprocessed.

    Returns:
        One ``LayerTrace`` per reducing layer, first to last; empty at ratio 1.

    Raises:
        ValueError: the model is not compressed.
    """
    stack = _stack(model)
    if stack is None:
        raise ValueError("the model is not compressed: call ttf.apply(model) first")
    recorder, host = _Recorder(stack, stack.plan), stack.plan.host
    recorder.states = []
    twin_with(model, host.container, recorder)(images)
    height, width = images.shape[-2:]
    return _layers(recorder.states[-1], host.grid(model, (height, width)), stack.plan.prefix)


def _kept(reduction: Reduction, matrix: Tensor) -> Tensor | None:
    """The token that each new one grew from, (B, M); None where the method does not name all of them."""
    kept = reduction.kept
    return None if kept is None or kept.shape[1] != matrix.shape[1] else kept


def _layers(state: State, grid: tuple[int, int], prefix: int) -> list[LayerTrace]:
    layers: list[LayerTrace] = []
    before: LayerTrace | None = None
    for block, reduction in state.chain:
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
