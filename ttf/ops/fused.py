"""The transform as one operator, and the Reduction that goes with its answer.

Shapes: B batch, N old and M new tokens, C channels. Imports torch alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ttf.ops.backends import runner, seen
from ttf.ops.plain import Reading, takes_blocks
from ttf.ops.reduction import DenseReduction, Recovery, Reduction, behind_prefix, gather_tokens
from ttf.ops.transform import assign, mark_own, similarity, unit_features


@dataclass(frozen=True, kw_only=True)
class TransformReduction(Reduction):
    """Many-to-many form that knows how W comes about; W itself is computed, by the plain operators, when asked for.

    Attributes:
        features: (B, n, F) of the old tokens behind the isolated ones.
        index: (B, m) int64, which of these the new tokens grew from.
        reading: of the equations.
        mass: (B, n) sizes of the old tokens, or None where all weigh 1.
        isolated: number of prefix tokens that pass through untouched.
    """

    features: Tensor
    index: Tensor
    reading: Reading
    mass: Tensor | None
    isolated: int

    def dense(self) -> DenseReduction:
        """The same with its shares (B, n, m) in memory, and without its features."""
        units = unit_features(self.features)
        cosines = similarity(gather_tokens(units, self.index), units).transpose(1, 2)
        shares = assign(mark_own(cosines, self.index), *self.reading.assignment)
        return DenseReduction(
            sizes=self.sizes,
            kept=self.kept,
            nearest=self.nearest,
            assignment=shares,
            mass=self.mass,
            prefix=self.isolated,
        )

    def retained(self, recovery: Recovery) -> Reduction:
        kept = super().retained(recovery)
        return self.dense() if kept is self else kept

    def down(self, x: Tensor) -> Tensor:
        return self.dense().down(x)

    def spread(self, y: Tensor) -> Tensor:
        return self.dense().spread(y)

    def matrix(self) -> Tensor:
        return self.dense().matrix()


def at_once(reading: Reading, x: Tensor, *features: Tensor) -> bool:
    """Whether one operator transforms tokens x (B, N, C) by their features, (B, n, F) each.

    Not where torch's own operators have to run one by one, nor where these are as fast: sequences that fit into the
    cache, without anything better to call.
    """
    if seen(x, *features):
        return False
    plain = runner(x.device, x.dtype, *(part.dtype for part in features)) == "plain"
    return takes_blocks(x, reading) if plain else True


def transform(
    x: Tensor, features: Tensor, scores: Tensor, mass: Tensor | None, keep: int, prefix: int, reading: Reading
) -> tuple[Tensor, TransformReduction]:
    """Select, assign and transform (Eq. 2-8) by ``ttf::transform``; arguments as ``ttf.ops.plain.transform`` has them.

    Returns:
        The new tokens (B, M, C) and their Reduction.
    """
    y, sizes, index = torch.ops.ttf.transform(x, features, scores, mass, keep, prefix, *reading.options)
    isolated = x.shape[1] - features.shape[1]
    kept = behind_prefix(index, isolated)
    return y, TransformReduction(
        sizes=sizes, kept=kept, features=features, index=index, reading=reading, mass=mass, isolated=isolated
    )
