"""The classes that compressed modules have while they are compressed: blocks, attention layers, exits.

Only the class of a module is exchanged, and one attribute added (``ttf_place``); parameters, buffers, hooks and names
stay. Modules are called by whoever calls them anyway. Shapes: B batch, N tokens, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ttf.core.exchange import Exchanged
from ttf.core.host import Attended, Call, Exit, Request
from ttf.core.plan import Place, Plan
from ttf.core.tokens import Tokens, as_tokens, mean_weights
from ttf.methods.base import LayerView
from ttf.ops.attention import Wanted
from ttf.ops.recovery import nearest_token
from ttf.ops.reduction import LocalReduction, Reduction, gather_tokens

Whole = Callable[..., Any]
NOTHING = Wanted()  # by name: torch 2.10 cannot compile the default of a named tuple


class CompressedAttention(Exchanged):
    """An attention layer that also answers a ``Request``."""

    ttf_place: Place

    def forward(self, *args: Any, ttf_request: Request | None = None, **kwargs: Any) -> Any:
        if ttf_request is None:
            return super().forward(*args, **kwargs)
        return self.ttf_place.plan.host.attended(self, args[0], ttf_request, kwargs)


class CompressedBlock(Exchanged):
    """A block that takes and gives ``Tokens`` once tokens were reduced, or where it reduces."""

    ttf_place: Place

    def forward(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        place, whole = self.ttf_place, super().forward
        tokens = as_tokens(x, f"block {type(self).__name__}")
        call = place.plan.host.arguments(named_arguments(self, args, kwargs), tokens.places)
        keep = _keep(place, tokens)
        if isinstance(x, Tensor) and keep >= x.shape[1] and not _watched(place):
            return whole(x, *args, **kwargs)  # nothing has been reduced yet: what the library returns
        after = _advance(self, whole, tokens, place, call, keep)
        back = isinstance(x, Tensor) and after.sizes is None  # all tokens are back at the end of the block
        return place.plan.host.pack(self, after.x if back else after)


def named_arguments(block: Any, args: tuple[Any, ...], kwargs: Call) -> Call:
    """The arguments of a compressed block by name, those that were given by position too."""
    if not args:
        return kwargs
    names = block.ttf_place.plan.host.names(block)
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _keep(place: Place, tokens: Tokens) -> int:
    """How many tokens are left after a block, prefix tokens included."""
    count, prefix = tokens.x.shape[1], place.plan.prefix
    return count if place.number < 0 else prefix + place.plan.schedule.kept(place.number, count - prefix)


def _watched(place: Place) -> bool:
    observer = place.plan.observer
    return observer is not None and place.number in observer.blocks


def _advance(block: Any, whole: Whole, tokens: Tokens, place: Place, call: Call, keep: int) -> Tokens:
    """One block: attention, reduction if the schedule says so, feed-forward."""
    plan, host = place.plan, place.plan.host
    sizes = tokens.sizes if plan.method.scaling else None
    if _watched(place):
        return _observe(block, tokens, place, call)
    if keep >= tokens.x.shape[1]:
        if sizes is None:
            return tokens._replace(x=host.unpack(whole(tokens.x, **call)))
        view = host.attend(block, tokens.x, Request(sizes, NOTHING, plan.prefix), call)
        return tokens._replace(x=host.feed_forward(block, view.x))
    if plan.method.around:
        return _local(whole, tokens, place, call, keep)
    if plan.method.per_branch:
        return _per_branch(block, tokens, place, call, keep)
    request = Request(sizes, plan.method.wanted, plan.prefix)
    if plan.method.at_entrance:
        return _entered(block, tokens, place, call, keep, request)
    view = host.attend(block, tokens.x, request, call)
    view = replace(view, sizes=tokens.sizes, block=place.number, depth=plan.depth, grid=_grid(tokens, plan))
    y, reduction = plan.method(view, keep)
    after = _reduced(tokens, view, y, reduction, plan)
    tell(plan, place.number, reduction)
    return after._replace(x=host.feed_forward(block, y))


def _reduced(tokens: Tokens, view: LayerView, y: Tensor, reduction: Reduction, plan: Plan) -> Tokens:
    """The tokens y (B, M, C) with all that goes with them."""
    recovery, chain = tokens.recovery or plan.recovery, tokens.chain
    if recovery is not None:
        if recovery == "nearest" and reduction.nearest is None:
            padded = reduction.sizes if plan.method.adaptive else None
            reduction = replace(reduction, nearest=nearest_token(view.x, y, plan.prefix, padded))
        chain = (*chain, reduction.retained(recovery))
    places = _places(tokens, reduction, plan.prefix) if plan.host.rotary else None
    return Tokens(y, reduction.sizes, places, reduction.grid, chain, recovery)


def _places(tokens: Tokens, reduction: Reduction, prefix: int) -> Tensor:
    """The place of each new patch token's informative token on the first grid, (B, M - P)."""
    assert reduction.kept is not None
    kept = (reduction.kept[:, prefix:] - prefix).clamp_min(0)  # padding names token 0
    return kept if tokens.places is None else tokens.places.gather(1, kept)


def tell(plan: Plan, number: int, reduction: Reduction) -> None:
    """Show the observer of a twin what a block did."""
    if plan.observer is not None:
        plan.observer.reduction(number, reduction)


def _grid(tokens: Tokens, plan: Plan) -> tuple[int, int] | None:
    """The grid that the patch tokens lie on: as they carry it; before the first reduction, as the images have it."""
    if tokens.grid is not None or tokens.sizes is not None:
        return tokens.grid
    count = tokens.x.shape[1] - plan.prefix
    if plan.grid is not None and plan.grid[0] * plan.grid[1] == count:
        return plan.grid
    side = math.isqrt(count)
    return (side, side) if side * side == count else None


def _observe(block: Any, tokens: Tokens, place: Place, call: Call) -> Tokens:
    """A block that stays whole and shows what it knows."""
    host, observer = place.plan.host, place.plan.observer
    assert observer is not None
    view = host.attend(block, tokens.x, Request(None, observer.wanted, place.plan.prefix), call)
    observer.view(place.number, view)
    return tokens._replace(x=host.feed_forward(block, view.x))


def _local(whole: Whole, tokens: Tokens, place: Place, call: Call, keep: int) -> Tokens:
    """One block on fewer tokens, with all of them back at its end."""
    plan, x = place.plan, tokens.x
    view = LayerView(x, plan.prefix, block=place.number, depth=plan.depth, grid=_grid(tokens, plan))
    y, reduction = plan.method(view, keep)
    assert isinstance(reduction, LocalReduction)
    tell(plan, place.number, reduction)
    return tokens._replace(x=reduction.close(plan.host.unpack(whole(y, **call)), x))


def _per_branch(block: Any, tokens: Tokens, place: Place, call: Call, keep: int) -> Tokens:
    """One block, each of its two branches on fewer tokens; nothing is left to undo, so the chain stays as it is."""
    x, plan = tokens.x, place.plan
    for norm, branch in plan.host.branches(block, call):
        normed = norm(x)
        view = LayerView(normed, plan.prefix, block=place.number, depth=plan.depth, grid=_grid(tokens, plan))
        y, reduction = plan.method(view, keep)
        x = x + reduction.up(branch(y))
    return tokens._replace(x=x)


def _entered(block: Any, tokens: Tokens, place: Place, call: Call, keep: int, request: Request) -> Tokens:
    """One block whose tokens are reduced before it, by the attention map of all of them."""
    plan = place.plan
    found: list[Tokens] = []

    def reduce(statistics: Attended) -> tuple[Tensor, Reduction]:
        view = statistics.view(tokens.x, plan.prefix)
        view = replace(view, sizes=tokens.sizes, block=place.number, depth=plan.depth, grid=_grid(tokens, plan))
        y, reduction = plan.method(view, keep)
        found.append(_reduced(tokens, view, y, reduction, plan))
        tell(plan, place.number, reduction)
        return y, reduction

    x = plan.host.enter(block, tokens.x, request, call, reduce)
    return found[0]._replace(x=plan.host.feed_forward(block, x))


class CompressedExit(Exchanged):
    """A module behind the blocks (the last norm) that makes a tensor of ``Tokens``."""

    ttf_place: Place
    ttf_exit: Exit

    def forward(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        own = super().forward
        if isinstance(x, Tensor):
            return own(x, *args, **kwargs)
        tokens = as_tokens(x, type(self).__name__)
        if self.ttf_exit.leave == "chain":
            return tokens
        if tokens.recovery is not None:
            return own(tokens.dense(), *args, **kwargs)
        return leave(tokens._replace(x=own(tokens.x, *args, **kwargs)), self.ttf_exit, self.ttf_place.plan)


def leave(tokens: Tokens, at: Exit, plan: Plan) -> Any:
    """Short tokens as an exit gives them."""
    if at.leave == "tokens":
        return tokens
    if tokens.sizes is None or at.leave == "short":
        return tokens.x
    if at.leave == "max":
        return _without_padding(tokens, plan)
    first = at.first
    weights = mean_weights(tokens.x, tokens.sizes[:, first:])
    ones = weights.new_ones(tokens.x.shape[0], first, 1)
    return tokens.x * torch.cat((ones, weights), dim=1)


def _without_padding(tokens: Tokens, plan: Plan) -> Tensor:
    """The tokens with copies of each image's first real patch token in place of padding: no maximum sees these."""
    if not plan.method.adaptive or tokens.sizes is None:
        return tokens.x
    padding = tokens.sizes == 0
    first = plan.prefix + (~padding[:, plan.prefix :]).float().argmax(dim=1, keepdim=True)
    return torch.where(padding.unsqueeze(-1), gather_tokens(tokens.x, first), tokens.x)


class PassThrough(Exchanged):
    """A module between embedding and blocks (patch dropout, the first norm) that sees ``Tokens`` with their grid."""

    def forward(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(x, Tensor):
            return super().forward(x, *args, **kwargs)
        y = super().forward(x.x, *args, **kwargs)
        return x._replace(x=y, grid=x.grid if y.shape[1] == x.x.shape[1] else None)
