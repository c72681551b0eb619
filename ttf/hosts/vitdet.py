"""``ViTDet``: its encoder is compressed, and dense again before the neck. Its blocks are timm's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from ttf.core.host import Exit, Host
from ttf.hosts.dense import DenseHost
from ttf.hosts.segmenter import CompressedEncoder
from ttf.models.detector import ViTDet


class ViTDetHost(DenseHost):
    """A host whose head reads every patch, so that tokens come back even where the plan does not ask for it."""

    kind = ViTDet
    container = "encoder.blocks"

    def blocks(self, model: Any) -> Sequence[nn.Module]:
        """See ``DenseHost.blocks``."""
        return model.encoder.blocks

    def exits(self, model: Any) -> tuple[Exit, ...]:
        """The encoder's norm."""
        return (Exit("encoder.norm"),)

    def others(self, model: Any) -> list[tuple[nn.Module, type]]:
        """The encoder, which knows the grid of an image."""
        return [(model.encoder, CompressedEncoder)]


def host(model: nn.Module) -> Host:
    """The host of a ``ViTDet``."""
    return ViTDetHost()
