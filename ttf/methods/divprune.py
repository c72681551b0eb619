"""DivPrune (arXiv 2503.02175): keep the patch tokens that differ most from each other, by greedy max-min distance."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ttf.methods.base import LayerView, Method
from ttf.methods.top_k import selection
from ttf.ops.bipartite import cosines
from ttf.ops.reduction import SelectionReduction


def diverse(x: Tensor, m: int) -> Tensor:
    """The token whose nearest other token is farthest, then always the one whose nearest chosen token is farthest.

    Args:
        x: (B, n, C); the distance is 1 - cosine.
        m: how many, at least 1.

    Returns:
        (B, m) int64 in the order of choice, no two the same.
    """
    apart = 1 - cosines(x, x)
    own = torch.eye(apart.shape[1], dtype=torch.bool, device=x.device)
    nearest = apart.masked_fill(own, torch.inf).amin(dim=1)
    chosen = nearest.argmax(dim=1, keepdim=True)
    nearest = torch.full_like(nearest, torch.inf)
    for _ in range(m - 1):
        row = apart.gather(1, chosen[:, -1:, None].expand(-1, -1, apart.shape[2])).squeeze(1)
        nearest = torch.minimum(nearest, row).scatter(1, chosen, -torch.inf)
        chosen = torch.cat((chosen, nearest.argmax(dim=1, keepdim=True)), dim=1)
    return chosen


@dataclass(frozen=True)
class DivPrune(Method):
    """W selects patch tokens that are far from each other, in raster order: one-hot rows. Reads no attention."""

    def reduce(self, view: LayerView, keep: int) -> SelectionReduction:
        """See ``Method.reduce``."""
        chosen = diverse(view.x[:, view.prefix :], keep - view.prefix)
        return selection(view, chosen.sort(dim=1).values)
