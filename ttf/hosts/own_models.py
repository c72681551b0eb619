"""The classifiers of ``ttf.models``: LV-ViT, T2T-ViT, PS-ViT.

Their blocks are timm's, so attention and feed-forward are those of ``ttf.hosts.timm_vit``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

from torch import Tensor, nn

from ttf.hosts import Host
from ttf.hosts.timm_vit import TIMM_VIT
from ttf.models.lv_vit import LVViT
from ttf.models.ps_vit import PSViT
from ttf.models.trunk import ClassTokenModel


class CompressedLVViT(LVViT):
    """The class of an ``LVViT`` while it is compressed: tokens that only pad an image have no say in its logits."""

    def forward(self, images: Tensor) -> Tensor:
        stack: Any = self.blocks
        if stack.plan.recovery or not stack.plan.method.adaptive:
            return super().forward(images)
        state = stack.run(self.embed(images))
        padding = None if state.sizes is None else state.sizes[:, self.num_prefix_tokens :] == 0
        return self.forward_head(self.norm(state.x), padding)


def _enter(model: nn.Module) -> None:
    if type(model) is LVViT:  # a subclass keeps what it has: there the stack alone compresses
        cast(Any, model).__class__ = CompressedLVViT


def _leave(model: nn.Module) -> None:
    if type(model) is CompressedLVViT:
        cast(Any, model).__class__ = LVViT


def _nothing(model: nn.Module) -> None:
    pass


def _grid(model: Any, size: Sequence[int]) -> tuple[int, int]:
    return model.grid(size)


def _reads_class_token(model: nn.Module) -> bool:
    return not isinstance(model, LVViT)  # whose auxiliary head reads the patch tokens


OWN = replace(TIMM_VIT, grid=_grid, reads_class_token=_reads_class_token, enter=_nothing, leave=_nothing)
LV_VIT = replace(OWN, enter=_enter, leave=_leave)


def after_sampling(first: int, depth: int) -> tuple[int, ...]:
    """Default places of PS-ViT: the first layer with a class token, a fifth and half of the way on; 4, 6, 9 of 14."""
    rest = depth - first
    return tuple(sorted({first, first + rest // 5, first + rest // 2}))


def host(model: nn.Module) -> Host:
    """The host of a ``ClassTokenModel``."""
    assert isinstance(model, ClassTokenModel)
    if isinstance(model, PSViT):
        first = len(model.ps_layers)
        return replace(OWN, container=model.container, first=first, blocks=partial(after_sampling, first))
    return LV_VIT if isinstance(model, LVViT) else OWN
