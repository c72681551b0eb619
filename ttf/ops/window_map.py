"""The windows of a map: which are alike, where their tokens lie, and what is left of them on a smaller map.

Shapes: H, W of the map, w side of a window, g windows of a kind with n tokens each. Imports torch alone.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

Size = tuple[int, int]


class Kind(NamedTuple):
    """Windows that are alike: their numbers, and the (rows, columns) of their tokens; None once these lie on no grid.

    Only those at the right and at the bottom of a map differ from the others.
    """

    windows: tuple[int, ...]
    tokens: int
    grid: Size | None


class Map:
    """The map of a stage, cut into windows: what follows from its size alone.

    Args:
        size: (H, W). window: side w.
    """

    def __init__(self, size: Size, window: int) -> None:
        self.size, self.window = size, window
        self.heights, self.widths = (self._sides(side) for side in size)

    def _sides(self, length: int) -> list[int]:
        whole, rest = divmod(length, self.window)
        return [self.window] * whole + ([rest] if rest else [])

    def kinds(self) -> list[Kind]:
        """The windows before any reduction."""
        found: dict[Size, list[int]] = {}
        for number in range(len(self.heights) * len(self.widths)):
            row, column = divmod(number, len(self.widths))
            found.setdefault((self.heights[row], self.widths[column]), []).append(number)
        return [Kind(tuple(numbers), rows * columns, (rows, columns)) for (rows, columns), numbers in found.items()]

    def sources(self, kinds: list[Kind], like: Tensor) -> list[Tensor]:
        """Places on the map of the tokens of each kind, (g, n) int64 each, in raster order."""
        found = []
        for kind in kinds:
            numbers = torch.tensor(kind.windows, device=like.device)
            assert kind.grid is not None
            rows, columns = (torch.arange(side, device=like.device) for side in kind.grid)
            top = numbers // len(self.widths) * self.window
            left = numbers % len(self.widths) * self.window
            down, right = top[:, None, None] + rows[None, :, None], left[:, None, None] + columns[None, None, :]
            found.append((down * self.size[1] + right).flatten(1))
        return found

    def shrunk(self, side: int) -> tuple[list[int], list[int]]:
        """Rows and columns of the windows where those of w x w tokens have become ``side`` x ``side``."""
        heights, widths = ([-(-length * side // self.window) for length in s] for s in (self.heights, self.widths))
        return heights, widths

    def kept_grid(self, kind: Kind, side: int) -> Size:
        """(rows, columns) of what is left of a kind of windows where whole ones have become ``side`` x ``side``."""
        heights, widths = self.shrunk(side)
        row, column = divmod(kind.windows[0], len(widths))
        return heights[row], widths[column]

    def filling(self, side: int, like: Tensor) -> tuple[Size, Tensor]:
        """Size of the map of windows of ``side``, and its places that no token has, (F,) int64."""
        heights, widths = self.shrunk(side)
        rows, columns = (self._taken(sides, side, like) for sides in (heights, widths))
        free = ~(rows.unsqueeze(1) & columns.unsqueeze(0)).flatten()
        return (len(rows), len(columns)), _where(free, len(free) - sum(heights) * sum(widths))

    def _taken(self, sides: list[int], side: int, like: Tensor) -> Tensor:
        lengths = torch.tensor(sides, device=like.device)
        return (torch.arange(side, device=like.device) < lengths.unsqueeze(1)).flatten()


def _where(chosen: Tensor, count: int) -> Tensor:
    """Indices of the ``count`` true values of (n,), without looking at them."""
    return chosen.to(torch.int8).argsort(descending=True, stable=True)[:count]
