"""Segmenter: its encoder is compressed, and dense again before its decoder or after it.

The blocks are timm's, so attention and feed-forward are those of ``ttf.hosts.timm_vit``.
Shapes: B batch, N patch tokens, M transformed tokens, P prefix tokens, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from ttf.hosts import Host
from ttf.hosts.timm_vit import TIMM_VIT
from ttf.models.segmenter import Segmenter, as_map
from ttf.ops.attention import Wanted
from ttf.stack import State

PLACES = ("backbone", "masks")
PREFIX = 1
NOTHING = Wanted()


@dataclass(frozen=True)
class DenseHost(Host):
    """A host whose head reads every patch, so that tokens come back even where the plan does not ask for it.

    Attributes:
        recover_at: "backbone": tokens come back at the end of the encoder, and the decoder runs on all of them.
            "masks": the decoder runs on the transformed tokens, and their mask logits come back (Hourglass's place).

    Raises:
        ValueError: another place.
    """

    recover_at: str = "backbone"

    def __post_init__(self) -> None:
        if self.recover_at not in PLACES:
            raise ValueError(f"recover_at must be one of {', '.join(PLACES)}, got {self.recover_at!r}")


def dense_blocks(depth: int) -> tuple[int, ...]:
    """Default places: a third of the way, then a quarter and two quarters on; 8, 14, 20 of 24 and 4, 7, 10 of 12."""
    return tuple(sorted({depth // 3 + i * (depth // 4) for i in range(3)}))


class CompressedSegmenter(Segmenter):
    """The class of a ``Segmenter`` while it is compressed."""

    def _run(self, images: Tensor) -> State:
        stack: Any = self.encoder.blocks
        recovery = stack.plan.recovery or "nearest"
        return stack.run(self.encoder.embed(images), recovery=recovery, grid=self.grid(images.shape[-2:]))

    def forward_features(self, images: Tensor) -> Tensor:
        """As the model's own, (B, 1 + N, C): recovered tokens."""
        return self.encoder.norm(self._run(images).dense())

    def forward_masks(self, images: Tensor) -> Tensor:
        """As the model's own, (B, K, rows, columns)."""
        stack: Any = self.encoder.blocks
        if stack.plan.host.recover_at == "backbone":
            return super().forward_masks(images)
        state = self._run(images)
        short = self._decode(self.encoder.norm(state.x), state.sizes if stack.plan.method.scaling else None)
        if state.chain:  # reductions count the class token
            behind = torch.cat((short.new_zeros(len(short), PREFIX, self.num_classes), short), dim=1)
            short = state._replace(x=behind).dense()[:, PREFIX:]
        return as_map(short, self.grid(images.shape[-2:]))

    def _decode(self, tokens: Tensor, sizes: Tensor | None) -> Tensor:
        """Mask logits (B, M, K) of normed tokens (B, 1 + M, C), to which the decoder's attention adds log s (Eq. 7)."""
        decoder = self.decoder
        x = decoder.embed(tokens[:, PREFIX:])
        if sizes is None:
            return decoder.compare(decoder.blocks(x))
        sizes = torch.cat((sizes[:, PREFIX:], sizes.new_ones(len(sizes), self.num_classes)), dim=1)
        for block in decoder.blocks:
            x = TIMM_VIT.feed_forward(block, TIMM_VIT.attend(block, x, sizes, NOTHING, 0).x)
        return decoder.compare(x)


def _enter(model: nn.Module) -> None:
    cast(Any, model).__class__ = CompressedSegmenter


def _leave(model: nn.Module) -> None:
    cast(Any, model).__class__ = Segmenter


def _grid(model: Any, size: Sequence[int]) -> tuple[int, int]:
    return model.grid(size)


def _prefix(_: nn.Module) -> int:
    return PREFIX


def _reads_class_token(_: nn.Module) -> bool:
    return False


def host(model: nn.Module, recover_at: str = "backbone") -> Host:
    """The host of a ``Segmenter``.

    Args:
        model: the model.
        recover_at: see ``DenseHost``.

    Raises:
        ValueError: a subclass, whose own forward would be lost; another place.
    """
    if type(model) not in (Segmenter, CompressedSegmenter):
        raise ValueError(f"{type(model).__name__} is a subclass of Segmenter: ttf can enter a plain Segmenter only")
    return DenseHost(
        attend=TIMM_VIT.attend, feed_forward=TIMM_VIT.feed_forward, branches=TIMM_VIT.branches, prefix=_prefix,
        blocks=dense_blocks, reads_class_token=_reads_class_token, grid=_grid, enter=_enter, leave=_leave,
        container="encoder.blocks", recover_at=recover_at,
    )  # fmt: skip
