"""ALGM (CVPR 2024): merge windows of alike tokens in an early block, alike tokens anywhere in a later one.

Shapes: B batch, N tokens, P prefix tokens, n = N - P patch tokens, w windows of k tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ttf.methods.base import LayerView, Method
from ttf.ops.bipartite import best_pairs, between_sides, merge_by_size
from ttf.ops.grid import Grid, require_grid
from ttf.ops.numerics import has_values
from ttf.ops.reduction import AssignmentReduction, behind_prefix


def windows_of(grid: Grid, window: int, device: torch.device) -> Tensor:
    """The tokens of all whole windows of window x window, (w, window^2) int64, both in raster order."""
    rows, columns = (side // window for side in grid)
    places = torch.arange(grid[0] * grid[1], device=device).reshape(grid)[: rows * window, : columns * window]
    return places.reshape(rows, window, columns, window).transpose(1, 2).reshape(rows * columns, window * window)


def window_similarity(x: Tensor, windows: Tensor) -> Tensor:
    """Mean cosine of different tokens of each window: x (B, n, C) and windows (w, k) to (B, w) float32."""
    units = F.normalize(x.detach().float(), dim=-1)[:, windows]
    size = windows.shape[1]
    own = units.square().sum(dim=(2, 3))
    return (units.sum(dim=2).square().sum(dim=2) - own) / (size * (size - 1))


def merged_windows(windows: Tensor, chosen: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """One token for each chosen window, then all other patches.

    Args:
        windows: (w, k).
        chosen: (B, r) numbers of windows.
        n: number of patch tokens.

    Returns:
        The new token of each patch (B, n), and the patch that each new one grew from (B, r + n - r k), int64; of a
        window, its first.
    """
    batch, count = chosen.shape
    members = windows[chosen]  # (B, r, k)
    rank = torch.arange(count, device=chosen.device).view(1, count, 1).expand_as(members)
    index = chosen.new_full((batch, n), -1).scatter(1, members.flatten(1), rank.flatten(1))
    alone = index < 0
    index = torch.where(alone, count + alone.cumsum(1) - 1, index)
    others = (~alone).long().argsort(dim=1, stable=True)[:, : n - members[0].numel()]
    return index, torch.cat((members[:, :, 0], others), dim=1)


def least_above(values: Tensor, threshold: float | Tensor, most: int) -> int:
    """The smallest number of an image's values (B, K) that are at least ``threshold``, and no more than ``most``.

    Raises:
        ValueError: there are no values to count (under torch.func, on the meta device, while compiling).
    """
    if not has_values(values):
        raise ValueError("a threshold counts tokens by their values, and here are none: use threshold=None")
    return min(most, int((values >= threshold).sum(dim=1).amin()))


@dataclass(frozen=True)
class ALGM(Method):
    """W takes size-weighted means of groups: exclusive, rows sum to 1. How many merge depends on the images.

    In block ``local_block`` windows whose tokens have a mean cosine of at least ``threshold`` become one token each,
    the most alike first. In other blocks it is ToMe's matching on x, of all pairs whose cosine is at least the mean of
    the best ones plus their standard deviation over the number of the block, counted from 1. All images of a batch
    merge the smallest number of any of them, so that the result depends on the batch; ``keep`` is a lower bound.

    Attributes:
        threshold: of a window; None: windows and pairs are as many as ``keep`` asks for, none too many, whatever their
            cosines.
        window: side of a window, at least 2. What is left of a grid that it does not divide stays as it is.
        local_block: the block that merges windows, which needs a grid.

    Raises:
        ValueError: a value out of its range.
    """

    threshold: float | None = 0.88
    window: int = 2
    local_block: int = 0

    def __post_init__(self) -> None:
        if self.threshold is not None and not -1.0 <= self.threshold <= 1.0:
            raise ValueError(f"threshold is a cosine and must be in [-1, 1], got {self.threshold}")
        if self.window < 2:
            raise ValueError(f"window is the side of a window and must be at least 2, got {self.window}")
        if self.local_block < 0:
            raise ValueError(f"local_block is the number of a block and must be at least 0, got {self.local_block}")

    @property
    def adaptive(self) -> bool:
        return self.threshold is not None

    def reduce(self, view: LayerView, keep: int) -> AssignmentReduction:
        """See ``Method.reduce``.

        Raises:
            ValueError: windows without a grid, or nothing to count where a threshold wants it.
        """
        if view.block == self.local_block:
            return self._windows(view, keep)
        tokens, prefix = view.x.shape[1], view.prefix
        r = min(tokens - keep, (tokens - prefix) // 2)
        scores = between_sides(view.x, prefix)
        if self.threshold is not None:
            best = scores[:, (prefix + 1) // 2 :].amax(dim=2)
            spread = best.std(dim=1).mean() if best.shape[1] > 1 else 0.0
            r = least_above(best, best.mean() + spread / (view.block + 1), r)
        matching = best_pairs(scores, r, prefix)
        return merge_by_size(matching.places(tokens), matching.kept, view.sizes)

    def _windows(self, view: LayerView, keep: int) -> AssignmentReduction:
        x, prefix = view.x[:, view.prefix :], view.prefix
        windows = windows_of(require_grid(view.grid, x.shape[1], "algm"), self.window, x.device)
        similar = window_similarity(x, windows)
        count = min((view.x.shape[1] - keep) // (self.window**2 - 1), windows.shape[0])
        if self.threshold is not None:
            count = least_above(similar, self.threshold, count)
        chosen = similar.argsort(dim=1, descending=True, stable=True)[:, :count]
        index, kept = merged_windows(windows, chosen, x.shape[1])
        return merge_by_size(behind_prefix(index, prefix), behind_prefix(kept, prefix), view.sizes)
