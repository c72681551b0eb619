"""Reductions that look at no token: average pooling of the grid, and every k-th token."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ttf.methods.base import LayerView, Method
from ttf.methods.top_k import selection
from ttf.ops.grid import Grid, beside_prefix, cells_for, check_cells, pooling_matrix, require_grid
from ttf.ops.reduction import MatrixReduction, SelectionReduction


@dataclass(frozen=True)
class UniformPool(Method):
    """W is adaptive average pooling of the grid to (rows, columns) cells: rows sum to 1, neighbours may overlap.

    There are about, not exactly, ``keep`` tokens: the nearest grid in the proportions of the old one. A token is
    shared between the cells that it lies in, so the sizes add up to those before.

    Attributes:
        cells: (rows, columns) of the new tokens; None: from ``keep``.
        scaling: later layers add log s to their attention logits (Eq. 7).
    """

    cells: Grid | None = None
    scaling: bool = True

    def __post_init__(self) -> None:
        check_cells(self.cells)

    @property
    def names_tokens(self) -> bool:
        return False

    def reduce(self, view: LayerView, keep: int) -> MatrixReduction:
        """See ``Method.reduce``. Raises ``ValueError`` where the tokens lie on no grid, or ``cells`` are too many."""
        batch, tokens, _ = view.x.shape
        grid = require_grid(view.grid, tokens - view.prefix, "UniformPool")
        cells = cells_for(grid, keep - view.prefix, self.cells)
        pool = pooling_matrix(grid, cells, view.x.device).expand(batch, -1, -1)
        weights = beside_prefix(pool, view.prefix)
        shares = weights / weights.sum(1, keepdim=True)
        return MatrixReduction(sizes=(shares * view.masses.unsqueeze(1)).sum(-1), weights=weights, grid=cells)


@dataclass(frozen=True)
class UniformStride(Method):
    """W selects tokens at even distances in raster order: token floor((i + 1/2) n / m) for i = 0 ... m - 1."""

    def reduce(self, view: LayerView, keep: int) -> SelectionReduction:
        """See ``Method.reduce``."""
        batch, tokens, _ = view.x.shape
        old, new = tokens - view.prefix, keep - view.prefix
        places = (2 * torch.arange(new, device=view.x.device) + 1) * old // (2 * new)
        return selection(view, places.expand(batch, -1))
