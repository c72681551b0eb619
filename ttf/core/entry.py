"""Entering a model and leaving it again: exchanged classes, twins, and a trial run of forwards that nobody knows."""

from __future__ import annotations

import types
import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ttf.core.compressed import CompressedAttention, CompressedBlock, CompressedExit
from ttf.core.exchange import check_forward, exchange, is_exchanged, restore
from ttf.core.host import Exit, Host
from ttf.core.plan import Observer, Place, Plan
from ttf.core.tokens import Tokens, TokensError
from ttf.methods.uniform import UniformStride
from ttf.ops.reduction import Reduction
from ttf.schedule import RemovePerBlock, reduces

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
OF_HOOKS = ("_hooks", "_with_kwargs", "_always_called")  # how the names of such attributes end
OF_TWIN = {"_modules", "_compiled_call_impl", "ttf_place"}  # attributes that a twin has of its own, beside hooks
Saved = list[tuple[nn.Module, dict[str, Any], type]]


def blocks_of(model: nn.Module, host: Host) -> list[nn.Module]:
    """The blocks of a model, first to last."""
    return list(cast(Any, model.get_submodule(host.container)))


def enter(model: nn.Module, plan: Plan) -> None:
    """Exchange the classes of blocks, attention layers and exits, and of the model where the host has a mixin.

    Raises:
        ValueError: a module whose forward sits on the instance; the model is then as before.
    """
    host, passing = plan.host, Place(plan)
    entered: list[tuple[nn.Module, type, Place]] = []
    for number, block in enumerate(blocks_of(model, host), host.first):
        watched = plan.observer is not None and number in plan.observer.blocks
        place = Place(plan, number) if watched or reduces(plan.schedule, number) else passing
        entered += [(block, host.block_mixin or CompressedBlock, place)]
        entered += [(attention, CompressedAttention, place) for attention in host.attentions(block)]
    entered += [(module, mixin, passing) for module, mixin in host.others(model)]
    if host.mixin is not None:
        entered.append((model, host.mixin, passing))
    paths = {module: path for path, module in model.named_modules()}
    instead = [module for module, mixin, _ in entered if "forward" in vars(mixin)]
    for module in instead + [module for module, _ in _exits(model, host)]:
        check_forward(module, paths.get(module, ""))
    for module, mixin, place in entered:
        exchange(module, mixin)
        module.__dict__["ttf_place"] = place
    enter_exits(model, passing)


def _exits(model: nn.Module, host: Host) -> list[tuple[nn.Module, Exit]]:
    return [(model.get_submodule(at.path), at) for at in host.exits(model)]


def enter_exits(model: nn.Module, place: Place) -> None:
    """Exchange the classes of the exits, anew where they are exchanged already."""
    for module, at in _exits(model, place.plan.host):
        if is_exchanged(module):
            restore(module)
        exchange(module, place.plan.host.exit_class(at.path) or CompressedExit)
        module.__dict__.update(ttf_place=place, ttf_exit=at)


def leave_model(model: nn.Module) -> None:
    """Give every compressed module of a model its own class back."""
    for module in [module for module in model.modules() if is_exchanged(module)]:
        restore(module)


def plan_of(model: nn.Module) -> Plan | None:
    """The plan of a compressed model, or None."""
    return next((m.__dict__["ttf_place"].plan for m in model.modules() if is_exchanged(m)), None)


def saved(model: nn.Module) -> Saved:
    """What ``give_back`` needs to compress a model again as it is now."""
    names = ("ttf_place", "ttf_exit")
    return [
        (m, {name: m.__dict__[name] for name in names if name in m.__dict__}, cast(Any, type(m)).ttf_parts[0])
        for m in model.modules()
        if is_exchanged(m)
    ]


def give_back(model: nn.Module, state: Saved) -> None:
    """Make a model as it was when ``saved`` saw it."""
    leave_model(model)
    for module, attributes, mixin in state:
        exchange(module, mixin)
        module.__dict__.update(attributes)


# twins


def twin(model: nn.Module, change: Callable[[Plan], Plan] | None = None, hooks: bool = True) -> nn.Module:
    """A second module over the same parameters and buffers, which stay in step with those of ``model``.

    Args:
        model: compressed or not; it stays as it is.
        change: what to do to the plan of a compressed model.
        hooks: whether the hooks of the model fire in the twin, too.

    Returns:
        New module objects all the way down. A model compiled in place (``model.compile()``) has an eager twin.

    Raises:
        ValueError: a module whose forward sits on the instance and belongs to the model.
    """
    made: dict[int, Any] = {}
    changed: dict[int, Plan] = {}

    def plan(old: Plan) -> Plan:
        assert change is not None
        return changed.setdefault(id(old), change(old))

    def copied(module: nn.Module) -> Any:
        if id(module) not in made:
            made[id(module)] = other = object.__new__(type(module))
            other.__dict__.update(module.__dict__)
            other.__dict__["_modules"] = {n: m if m is None else copied(m) for n, m in module._modules.items()}
            other.__dict__["_compiled_call_impl"] = None
            # of its own: a library that hooks the twin (transformers, to record hidden states) hooks the twin alone
            other.__dict__.update(_own_hooks(module) if hooks else {name: OrderedDict() for name in HOOKS})
            if change is not None and "ttf_place" in other.__dict__:
                place = other.__dict__["ttf_place"]
                other.__dict__["ttf_place"] = replace(place, plan=plan(place.plan))
        return made[id(module)]

    whole = copied(model)
    for path, module in model.named_modules():
        _rebind(module, path, made)
    return whole


def _own_hooks(module: nn.Module) -> dict[str, Any]:
    """Copies of the dictionaries that hold a module's hooks, and what torch notes of each hook."""
    return {n: v.copy() for n, v in vars(module).items() if n.endswith(OF_HOOKS) and isinstance(v, dict)}


def hooks_of(model: nn.Module) -> list[tuple[Any, ...]]:
    """What tells the hooks of a model's modules from those of another time."""
    return [
        (*module._forward_pre_hooks, None, *module._forward_hooks, None, module.__dict__.get("forward"))
        for module in model.modules()
    ]


def is_twin(other: nn.Module, model: nn.Module) -> bool:
    """Whether ``other``, once a twin of ``model``, has its attributes still, but for those that twins have themselves.

    Hooks are no part of that: compare ``hooks_of`` with what it was when the twin was made.
    """
    return all(_in_step(own, copy) for own, copy in zip(model.modules(), other.modules(), strict=True))


def _in_step(own: nn.Module, other: nn.Module) -> bool:
    return type(own) is type(other) and all(
        other.__dict__.get(name) is value
        for name, value in own.__dict__.items()
        if name not in OF_TWIN and not name.endswith(OF_HOOKS) and not isinstance(value, types.MethodType)
    )


def _rebind(module: nn.Module, path: str, made: dict[int, Any]) -> None:
    """Methods that are bound to modules of the model, on the instance, become those of the twin."""
    other = made[id(module)].__dict__
    for name, value in module.__dict__.items():
        bound = getattr(value, "_torchdynamo_orig_callable", value)
        if isinstance(bound, types.MethodType) and id(bound.__self__) in made:
            other[name] = types.MethodType(bound.__func__, made[id(bound.__self__)])
        elif name == "forward":
            raise ValueError(
                f"{path or 'the model'} has a forward of its own on the instance (accelerate's offload?), which would "
                "run the original model: call this before that"
            )


# trial run


class _Reached(Observer):
    def __init__(self) -> None:
        self.numbers: set[int] = set()

    def reduction(self, block: int, reduction: Reduction) -> None:
        self.numbers.add(block)


def check_reached(model: nn.Module, plan: Plan) -> None:
    """Run shapes through a model whose forward is its own, and see that every reducing block is called.

    Raises:
        ValueError: a block that the schedule names is not called, or tokens are read before they leave at an exit.
    """
    host, name = plan.host, type(model).__name__
    size = host.input_size(model)
    if host.knows_forward(model) or size is None:
        return
    reached = _Reached()
    trial = replace(plan, method=UniformStride(), schedule=RemovePerBlock(1), observer=reached)
    copy: Any = twin(model, hooks=False)
    leave_model(copy)
    enter(copy, trial)
    out, error = _tried(copy.eval(), size)
    if isinstance(error, TokensError) or isinstance(out, Tokens):
        what = error or "what it returns"
        raise ValueError(f"{name} has a forward of its own, which ttf cannot enter: {what}") from error
    if error is not None:
        warnings.warn(
            f"{name} has a forward of its own, and a trial run on shapes stopped with {type(error).__name__}: {error}. "
            "Check that ttf.trace(model, images) lists a layer for every reducing block.",
            stacklevel=4,
        )
        return
    wanted = {b for b in range(host.first, host.first + len(blocks_of(model, host))) if reduces(plan.schedule, b)}
    if missing := sorted(wanted - reached.numbers):
        raise ValueError(
            f"{name} has a forward of its own that does not call blocks {missing} as modules, block(x): ttf cannot "
            "compress it"
        )


def _tried(model: nn.Module, size: tuple[int, int]) -> tuple[Any, Exception | None]:
    like = next(model.parameters())
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        try:
            return model(torch.zeros(1, 3, *size, dtype=like.dtype, device=like.device)), None
        except Exception as error:
            return None, error
