"""The classifiers of ``ttf.models``: LV-ViT, T2T-ViT, PS-ViT. Their blocks are timm's."""

from __future__ import annotations

from typing import Any

from timm.layers import Attention
from torch import nn

from ttf.core.exchange import own_class
from ttf.core.host import Exit, Host
from ttf.hosts.timm_vit import BLOCKS, TIMM, TimmBlocks, check_blocks
from ttf.models.lv_vit import LVViT
from ttf.models.ps_vit import PSViT
from ttf.models.trunk import ClassTokenModel


class OwnClassifier(TimmBlocks):
    """A ``ClassTokenModel`` whose head reads the class token."""

    def check(self, model: Any) -> None:
        """Raise ``ValueError`` where a block is not timm's."""
        check_blocks(model, model.get_submodule(self.container), BLOCKS, (Attention,))

    def reads_class_token(self, model: Any) -> bool:
        """It does."""
        return True

    def grid(self, model: Any, size: tuple[int, int]) -> tuple[int, int]:
        """See ``ClassTokenModel.grid``."""
        return model.grid(size)

    def input_size(self, model: Any) -> tuple[int, int] | None:
        """The only size that the model takes."""
        return model.img_size, model.img_size

    def knows_forward(self, model: Any) -> bool:
        """Whether the forward is this project's."""
        own = own_class(model)
        return all(getattr(own, name).__module__.startswith(TIMM) for name in ("forward", "forward_features"))


class LVViTHost(OwnClassifier):
    """LV-ViT, whose auxiliary head takes the largest logit over the patch tokens."""

    def reads_class_token(self, model: Any) -> bool:
        """The patch tokens vote, too."""
        return False

    def exits(self, model: Any) -> tuple[Exit, ...]:
        """Tokens that only pad an image have no say in a maximum."""
        return (Exit("norm", "max"),)


class PSViTHost(OwnClassifier):
    """PS-ViT, whose sampling layers are counted as blocks and always stay whole."""

    def __init__(self, sampling: int) -> None:
        self.container, self.first = PSViT.container, sampling

    def default_blocks(self, depth: int) -> tuple[int, ...]:
        """The first layer with a class token, a fifth and half of the way on; 4, 6, 9 of 14."""
        rest = depth - self.first
        return tuple(sorted({self.first, self.first + rest // 5, self.first + rest // 2}))


def host(model: nn.Module) -> Host:
    """The host of a ``ClassTokenModel``."""
    assert isinstance(model, ClassTokenModel)
    if isinstance(model, PSViT):
        return PSViTHost(len(model.ps_layers))
    return LVViTHost() if isinstance(model, LVViT) else OwnClassifier()
