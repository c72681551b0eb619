"""What a reduction method is: hyper-parameters, what it wants to know of a layer, and a rule that gives a Reduction.

Shapes: B batch, N tokens, C channels, D head dimension, P prefix tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from ttf.ops.attention import Wanted
from ttf.ops.reduction import Reduction

ADDED = {"added": True}  # metadata of a field that a method got when there were rows of it: see ttf/tasks/identity.py


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
        attention: (B, H, N, N) float32, the attention map.
        value_norms: (B, N) float32, L2 norms of the values, all heads together.
        class_query: (B, C) query of the class token, heads side by side.
        flat_keys: (B, N, C) keys, heads side by side.
        block: number of the block, 0-based.
        depth: number of blocks of the model.
        grid: (rows, columns) of the patch tokens, or None where they lie on no grid (any more).
    """

    x: Tensor
    prefix: int
    sizes: Tensor | None = None
    scores: Tensor | None = None
    keys: Tensor | None = None
    normed: Tensor | None = None
    attention: Tensor | None = None
    value_norms: Tensor | None = None
    class_query: Tensor | None = None
    flat_keys: Tensor | None = None
    block: int = 0
    depth: int = 12
    grid: tuple[int, int] | None = None

    @property
    def masses(self) -> Tensor:
        """(B, N) float32: the sizes, 1 where there are none yet."""
        return self.x.new_ones(self.x.shape[:2], dtype=torch.float32) if self.sizes is None else self.sizes


class Method(ABC):
    """Base of the reduction methods, which are dataclasses: their fields are the hyper-parameters."""

    @property
    def wanted(self) -> Wanted:
        """What the method reads from a ``LayerView``; a host computes nothing else."""
        return Wanted()

    @property
    def unread(self) -> tuple[str, ...]:
        """Options that have no effect beside the others: giving one of them is a mistake."""
        return ()

    @property
    def scaling(self) -> bool:
        """Whether the following layers add log s to their attention logits (Eq. 7)."""
        return False

    @property
    def around(self) -> bool:
        """Whether tokens are reduced at the start of a block and back at its end (a ``LocalReduction``)."""
        return False

    @property
    def per_branch(self) -> bool:
        """Whether tokens are merged before the attention and again before the feed-forward, and back right after each.

        ``reduce`` then sees what goes into the branch as ``LayerView.x``, and tokens are dense between the branches.
        """
        return False

    @property
    def at_entrance(self) -> bool:
        """Whether tokens are reduced before the block, whose attention map is then pooled (``Reduction.pooled``).

        ``reduce`` then sees the block's input as ``LayerView.x``, with the map of all tokens.
        """
        return False

    @property
    def adaptive(self) -> bool:
        """Whether the number of tokens depends on the image; ``keep`` is then a bound, an upper one unless said."""
        return False

    @property
    def runs_plain(self) -> bool:
        """Whether it transforms tokens by a reading of its equations that ``ttf::transform`` does not have."""
        return False

    @property
    def names_tokens(self) -> bool:
        """Whether ``Reduction.kept`` names an old token for every new one, (B, M)."""
        return True

    def __call__(self, view: LayerView, keep: int) -> tuple[Tensor, Reduction]:
        """The new tokens (B, M, C), and the Reduction that they come from; arguments as for ``reduce``.

        A method that has the tokens before it has W overrides this.
        """
        reduction = self.reduce(view, keep)
        return reduction.down(view.x), reduction

    @abstractmethod
    def reduce(self, view: LayerView, keep: int) -> Reduction:
        """The Reduction from N to ``keep`` tokens, P of them prefix tokens.

        Args:
            view: what the layer knows.
            keep: M, with P < M < N. A method that cannot have any number of tokens (grids), or that adds one (a token
                for all that it drops), says so.

        Returns:
            A Reduction; one that brings its own way back fills ``nearest``, else the stack does where it is asked for.
        """
