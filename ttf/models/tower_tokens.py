"""What a LLaVA takes from its tower, compressed or not: M tokens of an image, or N recovered ones.

Tokens are reduced inside the tower, or *behind* it where the schedule reduces at the layer that comes after LLaVA's
feature layer alone (PruMerge): what goes into that layer is reduced then, by what the layer's attention knows.
Shapes: B batch, N tokens of the tower, M tokens that are left, C channels, P prefix tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ttf.core import entry
from ttf.core.plan import Observer, Plan
from ttf.methods.base import LayerView
from ttf.ops.attention import Wanted
from ttf.ops.recovery import nearest_token
from ttf.ops.reduction import Reduction, gather_tokens

ORDERS = ("raster", "official")
TOWER = "model.vision_tower"


def check_order(order: str) -> None:
    """Raise ``ValueError`` for another word than those of ``ORDERS``."""
    if order not in ORDERS:
        raise ValueError(f"order must be {' or '.join(ORDERS)}, got {order!r}")


class _Watch(Observer):
    """Keeps the reductions in front of a block and, where it is watched, what that block knows."""

    known: LayerView | None

    def __init__(self) -> None:
        self.begin(0, None)

    def begin(self, behind: int, wanted: Wanted | None) -> None:
        """Forget the pass before."""
        self.behind, self.reductions, self.known = behind, list[Reduction](), None
        self.wanted, self.blocks = (Wanted(), ()) if wanted is None else (wanted, (behind,))

    def view(self, block: int, view: LayerView) -> None:
        self.known = view

    def reduction(self, block: int, reduction: Reduction) -> None:
        if block < self.behind:
            self.reductions.append(reduction)


def feature_block(config: Any) -> int:
    """Number of the block that the features go into, 0-based; hidden state i goes into block i.

    Raises:
        ValueError: the features of several layers, or of the last one, whose tokens nothing takes on.
    """
    layer, depth = config.vision_feature_layer, config.vision_config.num_hidden_layers
    if not isinstance(layer, int):
        raise ValueError(f"features of several layers ({layer}) cannot be compressed: each has other tokens")
    return layer if layer >= 0 else depth + 1 + layer


def _ends_only(plan: Plan, behind: int, count: int) -> bool:
    """Whether the schedule reduces behind the features and nowhere before."""
    before = all(plan.schedule.kept(block, count) == count for block in range(behind))
    return before and plan.schedule.kept(behind, count) < count


def selected(model: Any, images: Tensor, order: str = "raster") -> list[Tensor]:
    """What a LLaVA takes from its tower for each image, (M, C) each, without the class token where it drops that.

    Args:
        model: a ``LlavaForConditionalGeneration``, compressed or not.
        images: (B, 3, S, S), prepared.
        order: of short tokens, see ``VisionLanguageModel``.
    """
    plan = entry.plan_of(model)
    images = images.to(next(model.get_submodule(TOWER).parameters()))
    if plan is not None and plan.method.adaptive and len(images) > 1:  # each image has its own number of tokens
        return [tokens for image in images.split(1) for tokens in selected(model, image, order)]
    first = 1 if model.config.vision_feature_select_strategy == "default" else 0
    if plan is None:
        states = model.get_submodule(TOWER)(images, output_hidden_states=True).hidden_states
        return list(states[model.config.vision_feature_layer][:, first:])
    return [tokens[first:] for tokens in _compressed(model, plan, images, order)]


# A twin of ViT-L costs more than a pass on a GPU: those that nobody uses are kept, one for each thread at most
_TWINS: WeakKeyDictionary[nn.Module, list[_Twin]] = WeakKeyDictionary()


@contextmanager
def _watched(tower: nn.Module, plan: Plan) -> Iterator[tuple[nn.Module, _Watch]]:
    """A twin of a compressed tower, and what watches it."""
    kept, found = _TWINS.setdefault(tower, []), None
    with suppress(IndexError):  # another thread may take the last one
        while found is None:
            found = kept.pop()
            found = found if found.fits(tower, plan) else None
    found = found or _Twin(tower, plan)
    yield found.module, found.watch
    kept.append(found)


class _Twin:
    """A twin of a tower with a watch of its own."""

    def __init__(self, tower: nn.Module, plan: Plan) -> None:
        self.plan, self.watch, self.hooks = plan, _Watch(), entry.hooks_of(tower)
        self.module = entry.twin(tower, lambda own: replace(own, observer=self.watch))

    def fits(self, tower: nn.Module, plan: Plan) -> bool:
        """Whether it still is what a new twin would be: the same plan, hooks and attributes."""
        same = plan is self.plan and self.hooks == entry.hooks_of(tower)
        return same and entry.is_twin(self.module, tower)


def _compressed(model: Any, plan: Plan, images: Tensor, order: str) -> list[Tensor]:
    behind = feature_block(model.config)
    grid = plan.host.grid(model, (images.shape[2], images.shape[3]))
    ends = _ends_only(plan, behind, grid[0] * grid[1])
    with _watched(model.get_submodule(TOWER), plan) as (twin, watch):
        watch.begin(behind, plan.method.wanted if ends else None)
        x = twin(images, output_hidden_states=True).hidden_states[model.config.vision_feature_layer]
        reductions, known = watch.reductions, watch.known
        watch.begin(behind, None)
    y = x
    if ends:
        assert known is not None
        y, last = _reduced_behind(plan, replace(known, x=x, block=behind, grid=grid))
        reductions = [last]
    if plan.recovery is not None or not reductions:
        return list(_recovered(plan, reductions[-1], x, y) if ends else y)
    return _in_order(y, reductions, plan, order)


def _reduced_behind(plan: Plan, view: LayerView) -> tuple[Tensor, Reduction]:
    keep = plan.prefix + plan.schedule.kept(view.block, view.x.shape[1] - plan.prefix)
    return plan.method(view, keep)


def _recovered(plan: Plan, reduction: Reduction, x: Tensor, y: Tensor) -> Tensor:
    """Dense tokens of a reduction behind the tower."""
    if plan.recovery is None:
        return y
    if plan.recovery == "nearest" and reduction.nearest is None:
        padded = reduction.sizes if plan.method.adaptive else None
        reduction = replace(reduction, nearest=nearest_token(x, y, plan.prefix, padded))
    return reduction.up(y) if plan.recovery == "nearest" else reduction.spread(y)


def _grew_from(reduction: Reduction) -> Tensor:
    """The token that each new one grew from, or takes most of, (B, M)."""
    kept = reduction.kept
    named = kept is not None and kept.shape[1] == reduction.sizes.shape[1]
    return kept if named and kept is not None else reduction.matrix().argmax(-1)


def origins(reductions: Sequence[Reduction]) -> Tensor:
    """The token of the first layer that each last one grew from, (B, M), layer by layer."""
    found = _grew_from(reductions[0])
    for reduction in reductions[1:]:
        found = found.gather(1, _grew_from(reduction))
    return found


def _in_order(y: Tensor, reductions: Sequence[Reduction], plan: Plan, order: str) -> list[Tensor]:
    """The tokens of each image without padding; in raster order, or as they are."""
    sizes, prefix = reductions[-1].sizes, plan.prefix
    if order == "raster":
        places = origins(reductions)[:, prefix:].argsort(dim=1, stable=True) + prefix
        front = torch.arange(prefix, device=places.device).expand(len(places), prefix)
        places = torch.cat((front, places), dim=1)
        y, sizes = gather_tokens(y, places), sizes.gather(1, places)
    if not plan.method.adaptive:
        return list(y)
    return [tokens[size > 0] for tokens, size in zip(y, sizes, strict=True)]
