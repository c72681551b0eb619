"""A reduction of several groups of tokens, each on its own: windows. Imports torch alone.

Shapes: B batch, N tokens in, M tokens out, C channels; a group of kind k has n_k tokens and becomes m_k, g_k of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ttf.ops.reduction import Recovery, Reduction, gather_tokens


@dataclass(frozen=True, kw_only=True)
class GroupedReduction(Reduction):
    """W in blocks: groups of the same size go through one Reduction, as its batch.

    New tokens are those of the first kind, group after group, then those of the next.

    Attributes:
        parts: a Reduction for each kind of group, batch B * g_k.
        sources: (B, g_k, n_k) int64 for each, the old tokens of every group.
    """

    parts: tuple[Reduction, ...]
    sources: tuple[Tensor, ...]

    def _old(self, x: Tensor) -> list[Tensor]:
        """Old tokens (B, N, C) by kind, (B * g_k, n_k, C)."""
        return [gather_tokens(x, s.flatten(1)).view(-1, s.shape[2], x.shape[2]) for s in self.sources]

    def _new(self, y: Tensor) -> list[Tensor]:
        """New tokens (B, M, C) by kind, (B * g_k, m_k, C)."""
        lengths = [s.shape[1] * part.sizes.shape[1] for s, part in zip(self.sources, self.parts, strict=True)]
        return [
            piece.reshape(-1, part.sizes.shape[1], y.shape[2])
            for piece, part in zip(y.split(lengths, dim=1), self.parts, strict=True)
        ]

    def _columns(self) -> int:
        return sum(s.shape[1] * s.shape[2] for s in self.sources)

    def down(self, x: Tensor) -> Tensor:
        pairs = zip(self.parts, self._old(x), strict=True)
        return torch.cat([part.down(old).reshape(len(x), -1, x.shape[2]) for part, old in pairs], dim=1)

    def spread(self, y: Tensor) -> Tensor:
        pairs = zip(self.parts, self._new(y), strict=True)
        pieces = [part.spread(new).reshape(len(y), -1, y.shape[2]) for part, new in pairs]
        places = torch.cat([source.flatten(1) for source in self.sources], dim=1)
        out = y.new_empty(len(y), self._columns(), y.shape[2])
        return out.scatter(1, places.unsqueeze(-1).expand(-1, -1, y.shape[2]), torch.cat(pieces, dim=1))

    def matrix(self) -> Tensor:
        batch, columns, blocks = len(self.sizes), self._columns(), []
        for part, source in zip(self.parts, self.sources, strict=True):
            block = part.matrix().view(batch, source.shape[1], -1, source.shape[2])
            index = source.unsqueeze(2).expand(-1, -1, block.shape[2], -1)
            blocks.append(block.new_zeros(*block.shape[:3], columns).scatter(3, index, block).flatten(1, 2))
        return torch.cat(blocks, dim=1)

    def retained(self, recovery: Recovery) -> Reduction:
        if recovery == "nearest":
            return super().retained(recovery)
        return replace(self, parts=tuple(part.retained(recovery) for part in self.parts))


def grouped(parts: list[Reduction], sources: list[Tensor]) -> GroupedReduction:
    """The reduction of all groups from one for each kind, see ``GroupedReduction``."""
    batch, first = len(sources[0]), 0
    sizes, kept, nearest, places = [], [], [], []
    for part, source in zip(parts, sources, strict=True):
        groups, new = source.shape[1], part.sizes.shape[1]
        sizes.append(part.sizes.view(batch, -1))
        if part.kept is not None:
            kept.append(source.gather(2, part.kept.view(batch, groups, new)).flatten(1))
        if part.nearest is not None:
            start = first + new * torch.arange(groups, device=source.device).view(1, -1, 1)
            nearest.append((part.nearest.view(source.shape) + start).flatten(1))
            places.append(source.flatten(1))
        first += groups * new
    found = torch.cat(nearest, dim=1) if len(nearest) == len(parts) else None
    if found is not None:
        found = torch.empty_like(found).scatter(1, torch.cat(places, dim=1), found)
    return GroupedReduction(
        sizes=torch.cat(sizes, dim=1), kept=torch.cat(kept, dim=1) if len(kept) == len(parts) else None,
        nearest=found, parts=tuple(parts), sources=tuple(sources),
    )  # fmt: skip
