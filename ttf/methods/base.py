"""What a reduction method is: hyper-parameters, what it wants to know of a layer, and a rule that gives a Reduction.

Shapes: B batch, N tokens, C channels, D head dimension, P prefix tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ttf.ops.attention import Wanted
from ttf.ops.reduction import Reduction


@dataclass(frozen=True)
class LayerView:
    """What one layer knows between its attention and its feed-forward half.

    Attributes:
        x: (B, N, C) tokens after the attention residual.
        prefix: number of prefix tokens P at the front.
        sizes: (B, N) float32, or None where all are 1.
        scores: (B, N) float32, column sums of the attention map over the rows asked for (Eq. 2).
        keys: (B, N, D) keys averaged over the heads.
        normed: (B, N, C) tokens after the norm of the feed-forward half.
    """

    x: Tensor
    prefix: int
    sizes: Tensor | None = None
    scores: Tensor | None = None
    keys: Tensor | None = None
    normed: Tensor | None = None


class Method(Protocol):
    """Interface of a reduction method; dataclasses in this package implement it."""

    @property
    def wanted(self) -> Wanted:
        """What the method reads from a ``LayerView``."""

    @property
    def scaling(self) -> bool:
        """Whether the following layers add log s to their attention logits (Eq. 7)."""

    def reduce(self, view: LayerView, keep: int) -> Reduction:
        """The Reduction from N to ``keep`` tokens, P of them prefix tokens.

        Args:
            view: what the layer knows.
            keep: M, with P < M < N.

        Returns:
            A Reduction; one that brings its own way back fills ``nearest``, else the stack does where it is asked for.
        """
