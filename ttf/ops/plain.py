"""The transform as one operator, by torch's own: selection, assignment and transform of tokens that are at hand.

Long sequences on a CPU are transformed in blocks of cosines that stay in the cache. Shapes: B batch, N old and M new
tokens, P prefix tokens in front of them, n = N - the isolated ones of these, C channels. Imports torch alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ttf.ops.attention import slices
from ttf.ops.numerics import full_precision
from ttf.ops.reduction import DenseReduction, behind_prefix
from ttf.ops.transform import (
    Gate,
    assign,
    gated_softmax,
    informative,
    mark_own,
    novelty,
    select,
    similarity,
    transformed_sizes,
    unit_features,
)

BLOCK = 1 << 20  # cosines, 4 MiB: as large as the caches of two cores; smaller blocks make slower products
MANY = 2048  # tokens; below, whole matrices are as fast

Answer = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Reading:
    """Which transform: the assignment as for ``ttf.ops.transform.assign``, and how tokens are chosen.

    Attributes:
        kappa: threshold of the gate (Eq. 3).
        tau: inverse temperature (Eq. 5).
        gate: "zero" or "mask".
        redundancy: select by the redundancy-aware score.
    """

    kappa: float
    tau: float
    gate: Gate
    redundancy: bool

    @classmethod
    def of(cls, kappa: float, tau: float, mask: bool, redundancy: bool) -> Reading:
        """From the arguments of ``ttf::transform``."""
        return cls(kappa, tau, "mask" if mask else "zero", redundancy)

    @property
    def options(self) -> tuple[float, float, bool, bool]:
        """The arguments of ``ttf::transform``."""
        return self.kappa, self.tau, self.gate == "mask", self.redundancy

    @property
    def assignment(self) -> tuple[float, float, Gate]:
        return self.kappa, self.tau, self.gate


def takes_blocks(x: Tensor, reading: Reading) -> bool:
    """Whether tokens x (B, N, C) are better transformed in blocks: many, on a CPU, in float32, redundancy-aware."""
    many = x.shape[0] > 0 and x.shape[1] >= MANY
    return many and reading.redundancy and x.device.type == "cpu" and x.dtype == torch.float32


def transform(
    x: Tensor, features: Tensor, scores: Tensor, mass: Tensor | None, keep: int, prefix: int, reading: Reading
) -> Answer:
    """Select, assign and transform (Eq. 2-8).

    Args:
        x: (B, N, C) tokens.
        features: (B, n, F) whose cosines count; the N - n tokens in front of these are isolated.
        scores: (B, N) float32 informativeness.
        mass: (B, n) sizes of the old tokens, or None.
        keep: M, number of new tokens.
        prefix: number of prefix tokens P, isolated or not; all of them are kept.
        reading: how.

    Returns:
        y (B, M, C) in the dtype of x, sizes (B, M) float32, and which of the n tokens the new ones behind the isolated
        ones grew from, int64.
    """
    run = in_blocks if takes_blocks(x, reading) else whole
    return run(x, features, scores, mass, keep, prefix, reading)


def whole(
    x: Tensor, features: Tensor, scores: Tensor, mass: Tensor | None, keep: int, prefix: int, reading: Reading
) -> Answer:
    """``transform`` with all similarities in memory at once."""
    isolated = x.shape[1] - features.shape[1]
    options = (keep - isolated, prefix - isolated, reading.redundancy)
    index, cosines = informative((features,), scores[:, isolated:], *options)
    shares = assign(mark_own(cosines, index), *reading.assignment)
    sizes = with_isolated(transformed_sizes(shares, mass), isolated)
    return DenseReduction(sizes=sizes, assignment=shares, mass=mass, prefix=isolated).down(x), sizes, index


def with_isolated(sizes: Tensor, isolated: int) -> Tensor:
    """Sizes (B, m) of new tokens with those of the isolated ones, 1, in front."""
    return F.pad(sizes, (isolated, 0), value=1.0)


def in_blocks(
    x: Tensor, features: Tensor, scores: Tensor, mass: Tensor | None, keep: int, prefix: int, reading: Reading
) -> Answer:
    """``transform``, redundancy-aware, image by image: every block of cosines is in the cache while it is worked on."""
    units, isolated = unit_features(features), x.shape[1] - features.shape[1]
    kept, found = prefix - isolated, list[tuple[Tensor, Tensor, Tensor]]()
    for image in range(x.shape[0]):
        blocks, ranks = _cosines(units[image : image + 1]), scores[image : image + 1, prefix:]
        ranks = torch.cat([novelty(ranks, block, part) for part, block in _patches(blocks, kept)], dim=1)
        index = behind_prefix(select(ranks, keep - prefix), kept)
        masses = None if mass is None else mass[image].float()
        found.append((*_transformed(blocks, index[0], x[image, isolated:], reading, masses), index))
    y, sizes, index = (torch.cat(parts) for parts in zip(*found, strict=True))
    return torch.cat((x[:, :isolated], y), dim=1), with_isolated(sizes, isolated), index


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
    blocks: list[tuple[slice, Tensor]], index: Tensor, x: Tensor, reading: Reading, mass: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Y (1, m, C) and sizes (1, m) of one image's tokens x (n, C), summed over blocks of these."""
    y, sizes = x.new_zeros(len(index), x.shape[1]), x.new_zeros(len(index))
    with full_precision(x):
        for part, block in blocks:
            shares = gated_softmax(block.index_select(2, index), 2, *reading.assignment)[0]
            sizes = sizes + transformed_sizes(shares.unsqueeze(0), None if mass is None else mass[None, part])[0]
            weighted = shares if mass is None else shares.mul_(mass[part].unsqueeze(1))
            y = torch.addmm(y, weighted.t(), x[part])
    return (y / sizes.clamp_min(torch.finfo(torch.float32).tiny).unsqueeze(1)).unsqueeze(0), sizes.unsqueeze(0)
