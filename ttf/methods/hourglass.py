"""Hourglass (arXiv 2210.01035): cluster the patch tokens around a coarser grid, and reconstruct them at the end."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ttf.methods.base import LayerView, Method
from ttf.ops.grid import Grid, beside_prefix, cell_places, cells_for, check_cells, pooling_matrix, require_grid
from ttf.ops.numerics import full_precision
from ttf.ops.recovery import reconstruction_weights, relative_distances
from ttf.ops.reduction import MatrixReduction

LARGEST_TEMPERATURE = 1e6  # the softmax is a maximum long before; products with distances overflow behind it


def initial_centroids(x: Tensor, grid: Grid, cells: Grid) -> Tensor:
    """Adaptive average pooling of tokens x (B, n, C) that lie on the grid: (B, m, C) float32."""
    with full_precision(x):
        return pooling_matrix(grid, cells, x.device) @ x.float()


def in_window(grid: Grid, cells: Grid, window: int, device: torch.device) -> Tensor:
    """Which centroids a token may join, (n, m) bool: their cells are at most window // 2 steps away, both ways."""
    row, column = cell_places(grid, cells, device)
    places = torch.arange(cells[0] * cells[1], device=device)
    down = (row.unsqueeze(1) - places // cells[1]).abs()
    across = (column.unsqueeze(1) - places % cells[1]).abs()
    return torch.maximum(down, across) <= window // 2


def cluster(
    x: Tensor, grid: Grid, cells: Grid, iterations: int = 5, temperature: float = 0.02, window: int = 5
) -> tuple[Tensor, Tensor, Tensor]:
    """Soft local k-means of tokens on a grid.

    Args:
        x: (B, n, C) tokens in raster order.
        grid: (h, w), n = h * w.
        cells: (rows, columns) of the centroids, m = rows * columns.
        iterations, temperature, window: see ``Hourglass``.

    Returns:
        affinity Q (B, m, n), columns sum to 1; W (B, m, n), Q with rows that sum to 1; centroids W x (B, m, C).
        All float32.
    """
    outside = ~in_window(grid, cells, window, x.device)
    x = x.float()
    centroids = initial_centroids(x, grid, cells)
    for _ in range(iterations):
        logits = -temperature * relative_distances(x, centroids)
        shares = logits.masked_fill(outside, -torch.inf).log_softmax(dim=-1)
        weights = shares.softmax(dim=1).transpose(1, 2)  # Q over its row sum, without dividing by one that underflows
        with full_precision(x):
            centroids = weights @ x
    return shares.exp().transpose(1, 2), weights, centroids


def hard_labels(x: Tensor, centroids: Tensor) -> Tensor:
    """The nearest centroid (B, m, C) of each token (B, n, C), without a window: (B, n) int64.

    ``gather_tokens(y, labels)`` is the plain way back, every token from its nearest one.
    """
    return relative_distances(x, centroids).argmin(dim=-1)


@dataclass(frozen=True)
class Hourglass(Method):
    """W holds the last affinity of a soft k-means around grid cells, rows sum to 1; many-to-many within the window.

    There are about, not exactly, ``keep`` tokens: the nearest grid in the proportions of the old one. Sizes are the
    row sums of the affinity and add up to those before. Way back ("transpose"): R of ``reconstruction_weights``.

    Attributes:
        iterations: of the k-means.
        temperature: T, times squared distances, of clustering and reconstruction.
        window: side of the square of cells whose centroids a token may join.
        neighbours: centroids that a token is reconstructed from; None: all.
        cells: (rows, columns) of the new tokens; None: from ``keep``.
    """

    iterations: int = 5
    temperature: float = 0.02
    window: int = 5
    neighbours: int | None = 20
    cells: Grid | None = None

    def __post_init__(self) -> None:
        for name in ("iterations", "window", "neighbours"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not 0.0 < self.temperature <= LARGEST_TEMPERATURE:
            raise ValueError(f"temperature must be above 0, at most {LARGEST_TEMPERATURE:g}, got {self.temperature}")
        check_cells(self.cells)

    @property
    def names_tokens(self) -> bool:
        return False

    def reduce(self, view: LayerView, keep: int) -> MatrixReduction:
        """See ``Method.reduce``. Raises ``ValueError`` where the tokens lie on no grid, or ``cells`` are too many."""
        x, prefix = view.x[:, view.prefix :], view.prefix
        grid = require_grid(view.grid, x.shape[1], "Hourglass")
        cells = cells_for(grid, keep - prefix, self.cells)
        affinity, weights, centroids = cluster(x, grid, cells, self.iterations, self.temperature, self.window)
        back = reconstruction_weights(x, centroids, self.temperature, self.neighbours)
        shares = beside_prefix(affinity, prefix)
        sizes = shares * view.masses.unsqueeze(1)
        return MatrixReduction(
            sizes=sizes.sum(-1), weights=beside_prefix(weights, prefix), back=beside_prefix(back, prefix), grid=cells
        )
