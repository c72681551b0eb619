"""W of several methods side by side: which old tokens go into which new ones, for one image and one layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import matplotlib
import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, PowerNorm
from torch import Tensor

from ttf.api import LayerTrace
from ttf.report.figures import save, shares

matplotlib.use("Agg")

Columns = Literal["sorted", "raster"]
Groups = Mapping[str, Mapping[str, LayerTrace]]  # heading to title to what the method's layer did

SHARED = 0.01  # an old token is shared if more than one new token takes more than this of it
FAINT = 1e-3  # smaller weights stay white
COLOURS = ListedColormap(plt.get_cmap("inferno_r")(np.linspace(0.28, 1.0, 256)))  # in grey: light to black
SCALE = PowerNorm(0.4, 0.0, 1.0)  # small weights can be seen
DROPPED = "0.88"
TICKS = (0.01, 0.1, 0.25, 0.5, 1.0)
SIZE = (4.1, 2.55)  # inches of a panel, with its title

WORDS = """Weights below {faint:g} are white.
Grey columns: old tokens that are dropped.
Shared: old tokens of which several new ones
take more than {shared:.0f} %.
{order}

In the paper's words pruning is a diagonal W and
merging a block-wise one: an old token is in one
new token at most. Many-to-many: it may be in
several."""
ORDER = {
    "sorted": "New tokens by the mean position of their old\ntokens, old ones by that of their new tokens.",
    "raster": "New tokens by the mean position of their old\ntokens; old ones: class token, then raster order.",
}


@dataclass(frozen=True)
class Arranged:
    """W of one image as it is drawn.

    Attributes:
        weights: (M, N), rows and columns in the order of the picture, no empty rows.
        dropped: (N,) bool, old tokens that go nowhere.
        shared: share of the old tokens that are in several new ones.
    """

    weights: Tensor
    dropped: Tensor
    shared: float


def _centres(weights: Tensor, prefix: int) -> Tensor:
    """Mean column position of every row of (M, N) weights; prefix rows come first, empty rows with the one above."""
    positions = torch.arange(weights.shape[1], dtype=torch.float64)
    total = weights.double().sum(1)
    centres = weights.double() @ positions / total
    centres[:prefix] = torch.arange(prefix) - float(prefix)
    above = torch.where(total > 0, torch.arange(len(total)), 0).cummax(0).values
    return centres[above]


def arrange(layer: LayerTrace, columns: Columns = "sorted") -> Arranged:
    """W of the first image of a layer, with rows sorted by the mean position of their columns.

    Args:
        layer: of one method.
        columns: "sorted" by the mean position of the new tokens that an old one goes into, or as they are, "raster".
    """
    weights, sizes = layer.W[0].cpu(), layer.sizes[0].cpu()
    taken = weights.sum(1) > 0
    weights, sizes = weights[taken], sizes[taken]
    rows = _centres(weights, layer.prefix).argsort(stable=True)
    weights, divided = weights[rows], shares(weights[rows], sizes[rows])
    share = ((divided > SHARED).sum(0) > 1).double().mean().item()
    if columns == "sorted":
        order = _centres(divided.T, layer.prefix).argsort(stable=True)
        weights = weights[:, order]
    return Arranged(weights, weights.sum(0) == 0, share)


def _panel(axes: Axes, title: str, layer: LayerTrace, columns: Columns) -> None:
    found = arrange(layer, columns)
    drawn = np.ma.masked_less(found.weights.clamp(0, 1).numpy(), FAINT)
    dropped, edges = (
        np.where(found.dropped.numpy(), 1.0, np.nan),
        (-0.5, drawn.shape[1] - 0.5, drawn.shape[0] - 0.5, -0.5),
    )
    axes.imshow(dropped[None], cmap=ListedColormap([DROPPED]), aspect="auto", extent=edges)
    axes.imshow(drawn, cmap=COLOURS, norm=SCALE, interpolation="nearest", aspect="auto")
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.set_title(f"{len(drawn)} new, {100 * found.shared:.0f} % shared", loc="right", fontsize=10.5)
    axes.tick_params(labelsize=9)
    axes.locator_params(nbins=5, integer=True)


def _label(grid: np.ndarray, groups: Groups) -> None:
    """Headings, and what the axes are."""
    for column, (heading, layers) in enumerate(groups.items()):
        grid[0, column].annotate(
            heading, (0.5, 1.24), xycoords="axes fraction", ha="center", fontsize=14, fontweight="bold"
        )
        grid[len(layers) - 1, column].set_xlabel("old tokens", fontsize=10.5)
        for row in range(len(layers)):
            grid[row, column].set_ylabel("new tokens", fontsize=10.5)


def _legend(axes: Axes, columns: Columns) -> None:
    """A colour bar above what there is to know."""
    axes.set_axis_off()
    strip = axes.inset_axes((0.0, 0.9, 1.0, 0.08))
    bar = plt.colorbar(ScalarMappable(SCALE, COLOURS), cax=strip, orientation="horizontal", ticks=TICKS)
    bar.ax.set_xticklabels([f"{tick:g}" for tick in TICKS], fontsize=9)
    strip.set_title("weight in W", fontsize=10.5, loc="left")
    words = WORDS.format(order=ORDER[columns], shared=100 * SHARED, faint=FAINT)
    axes.text(0.0, 0.6, words, fontsize=10.5, va="top", linespacing=1.35, transform=axes.transAxes)


def _free(grid: np.ndarray, groups: Groups) -> list[Axes]:
    """Panels without a matrix, column by column, switched off."""
    lengths = [len(layers) for layers in groups.values()]
    free: list[Axes] = [axes for column, length in enumerate(lengths) for axes in grid[length:, column]]
    for axes in free:
        axes.set_axis_off()
    return free


def _rows(lengths: Sequence[int]) -> int:
    """So many that the last column has two free panels for the legend, and another column one for the image."""
    most = max(lengths)
    enough = most - lengths[-1] >= 2 and any(length < most for length in lengths[:-1])
    return most if enough else most + 2


def matrices(groups: Groups, image: np.ndarray, words: str, path: Path, columns: Columns = "sorted") -> None:
    """W of every method as a picture, one column of panels a group; rows new tokens, columns old ones.

    Args:
        groups: heading to title to the layer, of which the first image is shown; at least one of each.
        image: (H, W, 3) in [0, 1], the photograph.
        words: what the photograph's panel says below it: the model, the block.
        path: PNG file to write.
        columns: order of the old tokens, see ``arrange``.

    Raises:
        ValueError: ``columns`` is neither "sorted" nor "raster".
    """
    if columns not in ORDER:
        raise ValueError(f"columns must be one of {', '.join(ORDER)}, got {columns!r}")
    rows = _rows([len(layers) for layers in groups.values()])
    size = (SIZE[0] * len(groups), SIZE[1] * rows + 0.4)
    figure, grid = plt.subplots(rows, len(groups), figsize=size, squeeze=False)
    for column, layers in enumerate(groups.values()):
        for axes, (title, layer) in zip(grid[:, column], layers.items(), strict=False):
            _panel(axes, title, layer, columns)
    _label(grid, groups)
    free = _free(grid, groups)
    free[0].imshow(image)
    free[0].annotate(words, (0.5, -0.06), xycoords="axes fraction", ha="center", va="top", fontsize=10.5)
    figure.tight_layout(h_pad=1.2, w_pad=1.5)
    _legend(free[-2] if len(free) > 1 else free[-1], columns)
    save(figure, path)
