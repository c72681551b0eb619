"""Figures: pure functions from traces and rows to PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch
from torch import Tensor

from ttf.api import LayerTrace
from ttf.data.files import atomic_write
from ttf.data.transforms import Preprocessing

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

SHOWN_ROWS = 4
DIM = 0.22  # brightness of a patch that is no informative token


def picture(tensor: Tensor, how: Preprocessing) -> np.ndarray:
    """A preprocessed image (3, H, W) as (H, W, 3) in [0, 1]."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (how.mean, how.std))
    return (tensor.float().cpu() * std + mean).clamp(0, 1).permute(1, 2, 0).numpy()


def _enlarge(cells: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Cells (rows, columns) blown up to the pixels of an image of ``shape``."""
    rows = np.arange(shape[0]) * cells.shape[0] // shape[0]
    columns = np.arange(shape[1]) * cells.shape[1] // shape[1]
    return cells[rows][:, columns]


def _show(axes: Axes, image: np.ndarray, title: str) -> None:
    axes.imshow(image, interpolation="nearest")
    axes.set_title(title, fontsize=9)
    axes.set_axis_off()


def _kept(image: np.ndarray, layer: LayerTrace, sample: int) -> np.ndarray:
    """The image with all but the informative tokens dimmed."""
    bright = np.full(layer.grid[0] * layer.grid[1], DIM)
    patches = layer.origin[sample][layer.prefix :] - layer.prefix
    bright[patches.cpu().numpy()] = 1.0
    return image * _enlarge(bright.reshape(layer.grid), image.shape)[..., None]


def typical_rows(layer: LayerTrace, sample: int, count: int = SHOWN_ROWS) -> list[int]:
    """New tokens worth a look: those that gather the most, (row of W), largest size first, prefix tokens left out."""
    sizes = layer.sizes[sample, layer.prefix :]
    return (sizes.topk(min(count, len(sizes))).indices + layer.prefix).tolist()


def _mark(axes: Axes, patch: int, layer: LayerTrace, shape: tuple[int, ...]) -> None:
    height, width = shape[0] / layer.grid[0], shape[1] / layer.grid[1]
    row, column = divmod(patch, layer.grid[1])
    corner = (column * width - 0.5, row * height - 0.5)
    for colour, line in (("black", 3.0), ("white", 1.4)):
        axes.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=colour, linewidth=line))


def _heat(axes: Axes, image: np.ndarray, layer: LayerTrace, sample: int, row: int) -> None:
    """Row of the product of all W up to the layer, over a faint image; the informative token has a frame."""
    weights = layer.total[sample, row, layer.prefix :].cpu().numpy().reshape(layer.grid)
    grey = np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2) * 0.45
    heat = plt.get_cmap("inferno")(_enlarge(weights / weights.max(), image.shape))[..., :3]
    share = _enlarge(np.clip(weights / weights.max() * 3, 0, 0.9), image.shape)[..., None]
    _show(axes, grey * (1 - share) + heat * share, f"row of W, s = {layer.sizes[sample, row]:.1f}")
    _mark(axes, int(layer.origin[sample, row]) - layer.prefix, layer, image.shape)


def save(figure: Figure, path: Path) -> None:
    atomic_write(path, lambda temporary: figure.savefig(temporary, format="png", dpi=150, bbox_inches="tight"))
    plt.close(figure)


def informative_tokens(images: Tensor, layers: Sequence[LayerTrace], how: Preprocessing, path: Path) -> None:
    """Fig. 5: per image, the informative tokens of every reducing layer, and heat maps of rows of W.

    Args:
        images: (B, 3, H, W), preprocessed; one row of panels each.
        layers: from ``ttf.trace`` on these images, at least one.
        how: the preprocessing, to show the images in their own colours.
        path: PNG file to write.

    Raises:
        ValueError: nothing was reduced.
    """
    if not layers:
        raise ValueError("no layer reduces tokens (ratio 1?): there is nothing to show")
    columns = 1 + len(layers) + SHOWN_ROWS
    figure, grid = plt.subplots(len(images), columns, figsize=(1.75 * columns, 1.95 * len(images)), squeeze=False)
    for sample, axes in enumerate(grid):
        image = picture(images[sample], how)
        _show(axes[0], image, "image")
        for panel, layer in zip(axes[1:], layers, strict=False):
            kept = layer.origin.shape[1] - layer.prefix
            _show(panel, _kept(image, layer, sample), f"after block {layer.block}: {kept} tokens")
        for panel, row in zip(axes[1 + len(layers) :], typical_rows(layers[-1], sample), strict=False):
            _heat(panel, image, layers[-1], sample, row)
    figure.tight_layout(pad=0.4)
    save(figure, path)
