"""What hosts of dense models on timm's blocks share: their head reads every patch, so tokens come back."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from timm.layers import Attention
from torch import nn

from ttf.core.exchange import own_class
from ttf.hosts.timm_vit import BLOCKS, TimmBlocks, check_blocks
from ttf.ops.reduction import Recovery

PREFIX = 1


class DenseHost(TimmBlocks):
    """A host whose head reads every patch, so that tokens come back even where the plan does not ask for it.

    Attributes:
        kind: the class of models, which has ``grid``.
    """

    kind: ClassVar[type[nn.Module]]
    recovery: Recovery | None = "nearest"

    @abstractmethod
    def blocks(self, model: Any) -> Sequence[nn.Module]:
        """All blocks that must be timm's."""

    def check(self, model: Any) -> None:
        """Raise ``ValueError`` for a subclass, whose own forward would be lost."""
        name = self.kind.__name__
        if own_class(model) is not self.kind:
            raise ValueError(f"{type(model).__name__} is a subclass of {name}: ttf can enter a plain {name} only")
        check_blocks(model, self.blocks(model), BLOCKS, (Attention,))

    def prefix(self, model: Any) -> int:
        """A class token."""
        return PREFIX

    def default_blocks(self, depth: int) -> tuple[int, ...]:
        """See ``dense_blocks``."""
        return dense_blocks(depth)

    def grid(self, model: Any, size: tuple[int, int]) -> tuple[int, int]:
        """The model's own."""
        return model.grid(size)


def dense_blocks(depth: int) -> tuple[int, ...]:
    """Default places: a third of the way, then a quarter and two quarters on; 8, 14, 20 of 24 and 4, 7, 10 of 12."""
    return tuple(sorted({depth // 3 + i * (depth // 4) for i in range(3)}))


def known_place(recover_at: str, places: Sequence[str]) -> str:
    """Where tokens come back. Raises ``ValueError`` for a place that is none of the model's."""
    if recover_at not in places:
        raise ValueError(f"recover_at must be one of {', '.join(places)}, got {recover_at!r}")
    return recover_at
