"""Compression inside of windows: the block that does it, and one reduction of all windows of a map.

The operator sees windows as its batch, those of the same shape together. Shapes: B batch, L tokens that are left of an
image, C channels, g windows of a kind with n tokens each.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ttf.core.compressed import named_arguments, tell
from ttf.core.exchange import Exchanged
from ttf.core.host import Request
from ttf.core.plan import Place, Plan
from ttf.core.tokens import Tokens, as_tokens
from ttf.methods.base import LayerView, Method
from ttf.ops.grouped import grouped
from ttf.ops.recovery import nearest_token
from ttf.ops.reduction import Recovery, Reduction, SelectionReduction, gather_tokens
from ttf.ops.window_map import Kind, Map, Size
from ttf.schedule import reduces


def steps(plan: Plan, at: Map, number: int) -> tuple[list[Kind], list[int], int]:
    """What a block that may reduce starts from, and what it leaves: windows, tokens of each kind, side of a window.

    All follows from the schedule and the size of the map, so nothing of it travels with the tokens.
    """
    host: Any = plan.host
    kinds, side = at.kinds(), at.window
    for block in range(host.first, number + 1):
        if not reduces(plan.schedule, block):
            continue
        counts, new = host.counts(plan, at, kinds, side, block)
        if block == number:
            return kinds, counts, new
        pairs = zip(kinds, counts, strict=True)
        packed = host.options["windows"] == "grid"
        kinds = [kind._replace(tokens=c, grid=at.kept_grid(kind, new) if packed else None) for kind, c in pairs]
        side = new
    return kinds, [kind.tokens for kind in kinds], side


class CompressedSwinBlock(Exchanged):
    """A block whose tokens may be fewer than its map has places."""

    ttf_place: Place

    def forward(self: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        place, whole = self.ttf_place, super().forward
        host: Any = place.plan.host
        tokens, call = as_tokens(x, f"block {type(self).__name__}"), named_arguments(self, args, kwargs)
        at = Map(tuple(call[host.positional[0]]), host.window(self))
        kinds, counts, side = steps(place.plan, at, place.number)
        reducing = place.number >= 0 and counts != [kind.tokens for kind in kinds]
        if isinstance(x, Tensor) and not reducing:
            return whole(x, *args, **kwargs)
        wanted = place.plan.method.wanted if reducing else Request().wanted
        sizes = tokens.sizes if place.plan.method.scaling else None
        before = tokens.grid[0] // len(at.heights) if tokens.grid else at.window
        view = host.attended_block(self, tokens, Request(sizes, wanted), at, before)
        step = _Step(place.plan, place.number, at, kinds, counts, side)
        if not reducing:
            return tokens._replace(x=host.feed_forward(self, view.x))
        if host.options["reduce_after"] == "attention":
            after = step.reduced(tokens, replace(view, sizes=tokens.sizes, block=place.number, depth=place.plan.depth))
            return after._replace(x=host.feed_forward(self, after.x))
        x = host.feed_forward(self, view.x)
        return step.reduced(tokens, replace(view, x=x, sizes=tokens.sizes, block=place.number, depth=place.plan.depth))


class _Step(NamedTuple):
    """One reduction: from windows ``kinds`` to ``counts`` tokens each, windows of ``side``."""

    plan: Plan
    number: int
    at: Map
    kinds: list[Kind]
    counts: list[int]
    side: int

    def reduced(self, tokens: Tokens, view: LayerView) -> Tokens:
        """The tokens that are left, (B, L', C), with all that goes with them."""
        batch = len(view.x)
        recovery, news, parts = tokens.recovery or self.plan.recovery, [], []
        sources = [source.expand(batch, -1, -1) for source in self._sources(tokens, view.x)]
        for kind, keep, source in zip(self.kinds, self.counts, sources, strict=True):
            y, part = self._window(kind, keep, view, source, recovery)
            news.append(y.reshape(batch, -1, y.shape[2]))
            parts.append(part)
        reduction = grouped(parts, sources)
        tell(self.plan, self.number, reduction)
        chain = tokens.chain if recovery is None else (*tokens.chain, reduction.retained(recovery))
        places, grid = self._places(tokens, reduction, parts, batch)
        return Tokens(torch.cat(news, dim=1), reduction.sizes, places, grid, chain, recovery)

    def _sources(self, tokens: Tokens, like: Tensor) -> list[Tensor]:
        """Old tokens of each kind of windows, (g, n) each: by place at first, later kind after kind."""
        if tokens.sizes is None and tokens.places is None:
            return self.at.sources(self.kinds, like)
        found, first = [], 0
        for kind in self.kinds:
            number = len(kind.windows) * kind.tokens
            found.append(torch.arange(first, first + number, device=like.device).view(len(kind.windows), -1))
            first += number
        return found

    def _window(
        self, kind: Kind, keep: int, view: LayerView, source: Tensor, recovery: Recovery | None
    ) -> tuple[Tensor, Reduction]:
        """One kind of windows, (B * g, n, C) to (B * g, m, C)."""
        own = _chosen(view, source, kind.grid)
        if keep >= kind.tokens:
            everyone = torch.arange(kind.tokens, device=own.x.device).expand(len(own.x), -1)
            return own.x, SelectionReduction(sizes=own.masses, kept=everyone, columns=kind.tokens, nearest=everyone)
        y, reduction = self._method(kind)(own, keep)
        if recovery == "nearest" and reduction.nearest is None:
            reduction = replace(reduction, nearest=nearest_token(own.x, y))
        return y, reduction

    def _method(self, kind: Kind) -> Method:
        """The method; one that pools gets the cells of this kind of windows."""
        method: Any = self.plan.method
        if any(field.name == "cells" for field in fields(method)):
            return replace(method, cells=self._kept_grid(kind))
        return method

    def _kept_grid(self, kind: Kind) -> Size:
        return self.at.kept_grid(kind, self.side)

    def _places(
        self, tokens: Tokens, reduction: Reduction, parts: list[Reduction], batch: int
    ) -> tuple[Tensor, Size | None]:
        """Where the new tokens lie, (B, L'), and the size of the map of smaller windows, if there is one."""
        host: Any = self.plan.host
        if host.options["windows"] == "places":
            assert reduction.kept is not None
            return (reduction.kept if tokens.places is None else tokens.places.gather(1, reduction.kept)), None
        every = [self._packed(kind, part, batch) for kind, part in zip(self.kinds, parts, strict=True)]
        return torch.cat(every, dim=1), (len(self.at.heights) * self.side, len(self.at.widths) * self.side)

    def _packed(self, kind: Kind, part: Reduction, batch: int) -> Tensor:
        """Places (B, g * m) of windows that are put together again in raster order, side by side."""
        grid = self._kept_grid(kind)
        rank = torch.arange(part.sizes.shape[1], device=part.sizes.device).expand(len(part.sizes), -1)
        if part.kept is not None:
            rank = part.kept.argsort(dim=1).argsort(dim=1)
        numbers = torch.tensor(kind.windows, device=rank.device).repeat(batch).unsqueeze(1)
        across = len(self.at.widths)
        rows = numbers // across * self.side + rank // grid[1]
        columns = numbers % across * self.side + rank % grid[1]
        return (rows * across * self.side + columns).view(batch, -1)


def _chosen(view: LayerView, source: Tensor, grid: Size | None) -> LayerView:
    """What windows know, their tokens ``source`` (B, g, n) as (B * g, n)."""
    groups, count = source.shape[1:]

    def pick(values: Tensor | None) -> Tensor | None:
        if values is None:
            return None
        if values.ndim == 2:
            return values.gather(1, source.flatten(1)).view(-1, count)
        return gather_tokens(values, source.flatten(1)).view(-1, count, values.shape[2])

    x = pick(view.x)
    assert x is not None and groups
    return LayerView(
        x, 0, sizes=pick(view.sizes), scores=pick(view.scores), keys=pick(view.keys), normed=pick(view.normed),
        value_norms=pick(view.value_norms), block=view.block, depth=view.depth, grid=grid,
    )  # fmt: skip
