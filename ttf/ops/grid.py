"""Grids of tokens: coarser grids, the average pooling between two grids, and W beside the prefix tokens.

Shapes: B batch, n = h * w tokens in raster order, m = rows * columns cells. Imports torch alone.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

Grid = tuple[int, int]


def require_grid(grid: Grid | None, patches: int, who: str) -> Grid:
    """The grid of ``patches`` tokens. Raises ``ValueError`` where they lie on none."""
    if grid is None or grid[0] * grid[1] != patches:
        known = "none" if grid is None else f"{grid[0]} x {grid[1]}"
        raise ValueError(f"{who} needs patch tokens that lie on a grid: there are {patches}, the grid is {known}")
    return grid


def check_cells(cells: Grid | None) -> None:
    """Raise ``ValueError`` unless ``cells`` is None or two numbers >= 1."""
    if cells is not None and (len(cells) != 2 or min(cells) < 1):
        raise ValueError(f"cells must be (rows, columns), both at least 1, got {cells}")


def grid_for(grid: Grid, patches: int) -> Grid:
    """The grid of about that many cells, in the proportions of ``grid``; their number need not be ``patches``."""
    scale = math.sqrt(patches / (grid[0] * grid[1]))
    return max(1, round(grid[0] * scale)), max(1, round(grid[1] * scale))


def cells_for(grid: Grid, patches: int, cells: Grid | None) -> Grid:
    """``cells`` where given, else ``grid_for``. Raises ``ValueError`` where they are finer than the grid."""
    rows, columns = cells or grid_for(grid, patches)
    if rows > grid[0] or columns > grid[1]:
        raise ValueError(f"{rows} x {columns} cells are more than the grid of {grid[0]} x {grid[1]} tokens has")
    return rows, columns


def _pool_axis(length: int, cells: int, device: torch.device) -> Tensor:
    """Average pooling along one axis, (cells, length): cell i covers floor(i L / c) to ceil((i + 1) L / c) - 1."""
    cell = torch.arange(cells, device=device).unsqueeze(1)
    place = torch.arange(length, device=device)
    start, end = cell * length // cells, ((cell + 1) * length + cells - 1) // cells
    inside = ((place >= start) & (place < end)).float()
    return inside / inside.sum(1, keepdim=True)


def pooling_matrix(grid: Grid, cells: Grid, device: torch.device) -> Tensor:
    """Adaptive average pooling of a grid to fewer cells: (m, n) float32, rows sum to 1; neighbours may overlap."""
    rows, columns = (_pool_axis(old, new, device) for old, new in zip(grid, cells, strict=True))
    return (rows[:, None, :, None] * columns[None, :, None, :]).reshape(cells[0] * cells[1], grid[0] * grid[1])


def cell_places(grid: Grid, cells: Grid, device: torch.device) -> tuple[Tensor, Tensor]:
    """Row and column of the cell that each token lies in, (n,) int64 each: floor(i rows / h), floor(j columns / w)."""
    row, column = (torch.arange(old, device=device) * new // old for old, new in zip(grid, cells, strict=True))
    return row.repeat_interleave(grid[1]), column.repeat(grid[0])


def cell_labels(grid: Grid, cells: Grid, device: torch.device) -> Tensor:
    """The cell that each token lies in, (n,) int64, cells in raster order."""
    row, column = cell_places(grid, cells, device)
    return row * cells[1] + column


def beside_prefix(weights: Tensor, prefix: int) -> Tensor:
    """Weights of the patch tokens (B, m, n) with identity rows for P prefix tokens in front: (B, P + m, P + n)."""
    if prefix == 0:
        return weights
    new, old = weights.shape[1:]
    own = F.pad(torch.eye(prefix, device=weights.device, dtype=weights.dtype), (0, old, 0, new))
    return F.pad(weights, (prefix, 0, prefix, 0)) + own
