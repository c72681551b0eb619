"""The transform by the Triton kernels of ``ttf.ops.kernels``: W is never in memory.

Shapes: B batch, N old and M new tokens, P prefix tokens in front of them, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ttf.ops.reduction import DenseReduction, Reduction, behind_prefix, gather_tokens
from ttf.ops.transform import Gate, assign, mark_own, select, similarity


@dataclass(frozen=True)
class Gating:
    """Threshold, inverse temperature and gate of Eq. 3 and 5, as for ``ttf.ops.transform.assign``."""

    kappa: float
    tau: float
    gate: Gate


@dataclass(frozen=True, kw_only=True)
class FusedReduction(Reduction):
    """Many-to-many form whose new tokens are there already; W itself is computed only when asked for.

    Attributes:
        source: (B, N, C) tokens that were transformed.
        answer: (B, M, C) what became of them.
        units: (B, n, F) unit features of the old tokens behind the isolated ones.
        index: (B, m) int64, which of these the new tokens grew from.
        gating: of the assignment.
        mass: (B, n) sizes of the old tokens, or None where all weigh 1.
        isolated: number of prefix tokens that pass through untouched.
    """

    source: Tensor
    answer: Tensor
    units: Tensor
    index: Tensor
    gating: Gating
    mass: Tensor | None
    isolated: int

    def _dense(self) -> DenseReduction:
        """The same with its assignment, by the plain operators."""
        chosen = gather_tokens(self.units, self.index)
        own = mark_own(similarity(chosen, self.units).transpose(1, 2), self.index)
        shares = assign(own, self.gating.kappa, self.gating.tau, self.gating.gate)
        return DenseReduction(sizes=self.sizes, assignment=shares, mass=self.mass, prefix=self.isolated)

    def down(self, x: Tensor) -> Tensor:
        return self.answer if x is self.source else self._dense().down(x)

    def spread(self, y: Tensor) -> Tensor:
        return self._dense().spread(y)

    def matrix(self) -> Tensor:
        return self._dense().matrix()


def transform(
    x: Tensor, units: Tensor, scores: Tensor, keep: int, prefix: int, *, gating: Gating, mass: Tensor | None,
    redundancy: bool,
) -> FusedReduction:  # fmt: skip
    """Select, assign and transform (Eq. 2-8).

    Args:
        x: (B, N, C) tokens.
        units: (B, n, F) float32 unit features; the N - n tokens in front of these are isolated.
        scores: (B, N) float32 informativeness.
        keep: M, number of new tokens.
        prefix: number of prefix tokens P, isolated or not; all of them are kept.
        gating: of the assignment.
        mass: (B, n) sizes of the old tokens, or None.
        redundancy: select by the redundancy-aware score.
    """
    from ttf.ops.kernels.transform import assignment_lse, novelty, transform_down  # imports triton

    isolated = x.shape[1] - units.shape[1]
    kept, options = prefix - isolated, (gating.kappa, gating.tau, gating.gate)
    ranks = scores[:, prefix:]
    if redundancy:
        ranks = novelty(units[:, kept:], ranks)
    index = behind_prefix(select(ranks, keep - prefix), kept)
    chosen = gather_tokens(units, index)
    lse = assignment_lse(units, chosen, index, *options)
    y, sizes = transform_down(units, chosen, index, lse, mass, x[:, isolated:], *options)
    return FusedReduction(
        sizes=F.pad(sizes, (isolated, 0), value=1.0), kept=behind_prefix(index, isolated), source=x,
        answer=torch.cat((x[:, :isolated], y), dim=1), units=units, index=index, gating=gating, mass=mass,
        isolated=isolated,
    )  # fmt: skip
