"""``ViTDet``: its encoder is compressed, and dense again before the neck. Its blocks are timm's."""

from __future__ import annotations

from typing import Any

from timm.layers import Attention
from torch import nn

from ttf.core.exchange import own_class
from ttf.core.host import Exit, Host
from ttf.hosts.segmenter import PREFIX, CompressedEncoder, dense_blocks
from ttf.hosts.timm_vit import BLOCKS, TimmBlocks, check_blocks
from ttf.models.detector import ViTDet
from ttf.ops.reduction import Recovery


class ViTDetHost(TimmBlocks):
    """A host whose head reads every patch, so that tokens come back even where the plan does not ask for it."""

    container = "encoder.blocks"
    recovery: Recovery | None = "nearest"

    def check(self, model: Any) -> None:
        """Raise ``ValueError`` for a subclass, whose own forward would be lost."""
        if own_class(model) is not ViTDet:
            raise ValueError(f"{type(model).__name__} is a subclass of ViTDet: ttf can enter a plain ViTDet only")
        check_blocks(model, model.encoder.blocks, BLOCKS, (Attention,))

    def prefix(self, model: Any) -> int:
        """A class token."""
        return PREFIX

    def default_blocks(self, depth: int) -> tuple[int, ...]:
        """See ``dense_blocks``."""
        return dense_blocks(depth)

    def grid(self, model: Any, size: tuple[int, int]) -> tuple[int, int]:
        """See ``ViTDet.grid``."""
        return model.grid(size)

    def exits(self, model: Any) -> tuple[Exit, ...]:
        """The encoder's norm."""
        return (Exit("encoder.norm"),)

    def others(self, model: Any) -> list[tuple[nn.Module, type]]:
        """The encoder, which knows the grid of an image."""
        return [(model.encoder, CompressedEncoder)]


def host(model: nn.Module) -> Host:
    """The host of a ``ViTDet``."""
    return ViTDetHost()
