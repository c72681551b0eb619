"""mmdet's own ``SwinTransformer``, alone or inside of a detector that stays as it is."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ttf.core.host import Host
from ttf.hosts.swin import SwinHost, enter_at, has


class MMDetSwinHost(SwinHost):
    """mmdet's ``SwinTransformer``."""

    positional = ("hw_shape",)

    def attentions(self, block: Any) -> tuple[nn.Module, ...]:
        """The layer inside of the one that cuts windows."""
        return (block.attn.w_msa,)

    def window(self, block: Any) -> int:
        """Side of its windows."""
        return int(block.attn.window_size)

    def shift(self, block: Any) -> int:
        """By how much they are shifted."""
        return int(block.attn.shift_size)

    def dropped(self, block: Any, out: Tensor) -> Tensor:
        """Stochastic depth."""
        return block.attn.drop(out)

    def feed_forward(self, block: Any, x: Tensor) -> Tensor:
        """See ``Host.feed_forward``."""
        return block.ffn(block.norm2(x), identity=x)


def host(model: nn.Module) -> Host:
    """The host of mmdet's ``SwinTransformer``, or of a detector on one.

    Raises:
        ValueError: a detector with another backbone.
    """
    for backbone in ("", "backbone.", "detector.backbone."):
        if has(model, f"{backbone}stages"):
            return enter_at(MMDetSwinHost, model, backbone, "stages")
    raise ValueError(f"{type(model).__name__} has no Swin as its backbone: ttf compresses detectors on Swin alone")
