"""Selection, assignment and transform in one go, for tokens that are at hand.

By the C++ operator of ``ttf.ops.native``; by the Triton kernels of ``ttf.ops.kernels``, where W is never in memory as a
whole; or for long sequences on a CPU without the former in blocks that stay in the cache.
Shapes: B batch, N old and M new tokens, P prefix tokens in front of them, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ttf.ops import native
from ttf.ops.attention import slices
from ttf.ops.numerics import full_precision
from ttf.ops.reduction import DenseReduction, Reduction, behind_prefix, gather_tokens
from ttf.ops.transform import (
    Gate,
    assign,
    gated_softmax,
    mark_own,
    novelty,
    select,
    similarity,
    transformed_sizes,
    unit_features,
)

BLOCK = 1 << 20  # cosines, 4 MiB: as large as the caches of two cores; smaller blocks make slower products
MANY = 2048  # tokens; below, the plain operators are as fast


@dataclass(frozen=True)
class Gating:
    """Threshold, inverse temperature and gate of Eq. 3 and 5, as for ``ttf.ops.transform.assign``."""

    kappa: float
    tau: float
    gate: Gate


@dataclass(frozen=True, kw_only=True)
class AnsweredReduction(DenseReduction):
    """Many-to-many form whose new tokens are there already.

    Attributes:
        source: (B, N, C) tokens that were transformed.
        answer: (B, M, C) what became of them.
    """

    source: Tensor
    answer: Tensor

    def down(self, x: Tensor) -> Tensor:
        return self.answer if x is self.source else super().down(x)

    def settled(self) -> DenseReduction:
        return DenseReduction(**{field.name: getattr(self, field.name) for field in fields(DenseReduction)})


@dataclass(frozen=True, kw_only=True)
class FusedReduction(Reduction):
    """Many-to-many form whose new tokens are there already; W itself is computed only when asked for.

    Attributes:
        source: (B, N, C) tokens that were transformed, or None once they are.
        answer: (B, M, C) what became of them, or None.
        units: (B, n, F) unit features of the old tokens behind the isolated ones.
        index: (B, m) int64, which of these the new tokens grew from.
        gating: of the assignment.
        mass: (B, n) sizes of the old tokens, or None where all weigh 1.
        isolated: number of prefix tokens that pass through untouched.
    """

    source: Tensor | None
    answer: Tensor | None
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
        return self.answer if self.answer is not None and x is self.source else self._dense().down(x)

    def settled(self) -> FusedReduction:
        return replace(self, source=None, answer=None)

    def spread(self, y: Tensor) -> Tensor:
        return self._dense().spread(y)

    def matrix(self) -> Tensor:
        return self._dense().matrix()


def natively(
    x: Tensor, features: Tensor, scores: Tensor, keep: int, prefix: int, *, gating: Gating, mass: Tensor | None,
    redundancy: bool,
) -> AnsweredReduction:  # fmt: skip
    """As ``by_kernels``, on a CPU."""
    isolated = x.shape[1] - features.shape[1]
    y, sizes, index, shares = native.transform(
        x, features, scores, mass, keep, prefix, kappa=gating.kappa, tau=gating.tau, mask=gating.gate == "mask",
        redundancy=redundancy,
    )  # fmt: skip
    return AnsweredReduction(
        sizes=sizes, kept=behind_prefix(index, isolated), assignment=shares.transpose(1, 2), mass=mass,
        prefix=isolated, source=x, answer=y,
    )  # fmt: skip


def by_kernels(
    x: Tensor, features: Tensor, scores: Tensor, keep: int, prefix: int, *, gating: Gating, mass: Tensor | None,
    redundancy: bool,
) -> FusedReduction:  # fmt: skip
    """Select, assign and transform (Eq. 2-8) on a GPU.

    Args:
        x: (B, N, C) tokens.
        features: (B, n, F) whose cosines count; the N - n tokens in front of these are isolated.
        scores: (B, N) float32 informativeness.
        keep: M, number of new tokens.
        prefix: number of prefix tokens P, isolated or not; all of them are kept.
        gating: of the assignment.
        mass: (B, n) sizes of the old tokens, or None.
        redundancy: select by the redundancy-aware score.
    """
    from ttf.ops.kernels import transform as kernels  # imports triton

    units, isolated = unit_features(features), x.shape[1] - features.shape[1]
    kept, options = prefix - isolated, (gating.kappa, gating.tau, gating.gate)
    ranks = scores[:, prefix:]
    if redundancy:
        ranks = kernels.novelty(units[:, kept:], ranks)
    index = behind_prefix(select(ranks, keep - prefix), kept)
    chosen = gather_tokens(units, index)
    lse = kernels.assignment_lse(units, chosen, index, *options)
    y, sizes = kernels.transform_down(units, chosen, index, lse, mass, x[:, isolated:], *options)
    return _answered(x, units, index, y, sizes, gating, mass)


def _answered(
    x: Tensor, units: Tensor, index: Tensor, y: Tensor, sizes: Tensor, gating: Gating, mass: Tensor | None
) -> FusedReduction:  # fmt: skip
    isolated = x.shape[1] - units.shape[1]
    return FusedReduction(
        sizes=F.pad(sizes, (isolated, 0), value=1.0), kept=behind_prefix(index, isolated), source=x,
        answer=torch.cat((x[:, :isolated], y), dim=1), units=units, index=index, gating=gating, mass=mass,
        isolated=isolated,
    )  # fmt: skip


def wants_blocks(x: Tensor) -> bool:
    """Whether tokens x (B, N, C) are better transformed in blocks: many, on a CPU, in float32, without a gradient."""
    if x.device.type != "cpu" or torch.compiler.is_compiling() or (torch.is_grad_enabled() and x.requires_grad):
        return False
    return x.dtype == torch.float32 and x.shape[1] >= MANY


def in_blocks(
    x: Tensor, features: Tensor, scores: Tensor, keep: int, prefix: int, *, gating: Gating, mass: Tensor | None
) -> FusedReduction:  # fmt: skip
    """As ``by_kernels``, redundancy-aware, by torch: every block of cosines is in the cache while it is worked on."""
    units, isolated = unit_features(features), x.shape[1] - features.shape[1]
    kept, found = prefix - isolated, list[tuple[Tensor, Tensor, Tensor]]()
    for image in range(x.shape[0]):
        blocks, ranks = _cosines(units[image : image + 1]), scores[image : image + 1, prefix:]
        ranks = torch.cat([novelty(ranks, block, part) for part, block in _patches(blocks, kept)], dim=1)
        index = behind_prefix(select(ranks, keep - prefix), kept)
        masses = None if mass is None else mass[image].float()
        found.append((index, *_transformed(blocks, index[0], x[image, isolated:], gating, masses)))
    index, y, sizes = (torch.cat(parts) for parts in zip(*found, strict=True))
    return _answered(x, units, index, y, sizes, gating, mass)


def _cosines(units: Tensor) -> list[tuple[slice, Tensor]]:
    """Blocks of rows of all cosines of (1, n, F) units, (1, k, n) each; a token is exactly like itself."""
    n, blocks = units.shape[1], list[tuple[slice, Tensor]]()
    for part in slices(n, max(1, BLOCK // n)):
        block = similarity(units[:, part], units)
        block[0, :, part].fill_diagonal_(1.0)
        blocks.append((part, block))
    return blocks


def _patches(blocks: list[tuple[slice, Tensor]], kept: int) -> Iterator[tuple[slice, Tensor]]:
    """The same without the prefix tokens that take part."""
    for part, block in blocks:
        behind = slice(max(part.start - kept, 0), part.stop - kept)
        if behind.stop > behind.start:
            yield behind, block[:, max(kept - part.start, 0) :, kept:]


def _transformed(
    blocks: list[tuple[slice, Tensor]], index: Tensor, x: Tensor, gating: Gating, mass: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Y (1, m, C) and sizes (1, m) of one image's tokens x (n, C), summed over blocks of these."""
    y, sizes = x.new_zeros(len(index), x.shape[1]), x.new_zeros(len(index))
    with full_precision(x):
        for part, block in blocks:
            shares = gated_softmax(block.index_select(2, index), 2, gating.kappa, gating.tau, gating.gate)[0]
            sizes = sizes + transformed_sizes(shares.unsqueeze(0), None if mass is None else mass[None, part])[0]
            weighted = shares if mass is None else shares.mul_(mass[part].unsqueeze(1))
            y = torch.addmm(y, weighted.t(), x[part])
    return (y / sizes.clamp_min(torch.finfo(torch.float32).tiny).unsqueeze(1)).unsqueeze(0), sizes.unsqueeze(0)
