"""Figures: pure functions from traces and rows to PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ttf.api import LayerTrace
from ttf.data.files import atomic_write, check_replaceable
from ttf.data.transforms import Preprocessing

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Patch, Rectangle

SHOWN_ROWS = 4
DIM = 0.22  # brightness of a patch that is no informative token
SHARED = 0.05  # a new token shares a patch if it takes more than this of it
PANEL = 1.55  # inches
MOST = 4  # tokens that share one patch: the last step of the scale
COUNTS = ListedColormap(plt.get_cmap("viridis")(np.linspace(0.0, 1.0, MOST + 1)))


def picture(tensor: Tensor, how: Preprocessing) -> np.ndarray:
    """A preprocessed image (3, H, W) as (H, W, 3) in [0, 1]."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (how.mean, how.std))
    return (tensor.float().cpu() * std + mean).clamp(0, 1).permute(1, 2, 0).numpy()


def _enlarge(cells: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Cells (rows, columns) blown up to the pixels of an image of ``shape``."""
    rows = np.arange(shape[0]) * cells.shape[0] // shape[0]
    columns = np.arange(shape[1]) * cells.shape[1] // shape[1]
    return cells[rows][:, columns]


def shaded(image: np.ndarray, left: np.ndarray | None) -> np.ndarray:
    """An image (H, W, 3) with the patches that have no token of their own darkened.

    Args:
        image: in [0, 1].
        left: (rows, columns) bool, patches whose tokens were left; None: all of them.
    """
    return image if left is None else image * _enlarge(np.where(left, 1.0, DIM), image.shape)[..., None]


def _show(axes: Axes, image: np.ndarray, title: str) -> None:
    axes.imshow(image, interpolation="nearest")
    axes.set_title(title, fontsize=10)
    axes.set_axis_off()


def shares(weights: Tensor, sizes: Tensor) -> Tensor:
    """How W (..., M, N) and the sizes (..., M) of the new tokens divide the old ones up: columns sum to 1.

    A column that no new token takes anything of is 0.
    """
    taken = weights * sizes.unsqueeze(-1)
    return taken / taken.sum(-2, keepdim=True).clamp_min(torch.finfo(taken.dtype).tiny)


def flow(layers: Sequence[LayerTrace], sample: int) -> Tensor:
    """The share of every first token that is in every token after the last layer, (M, N_first)."""
    last = layers[-1]
    result = shares(last.W[sample], last.sizes[sample])
    if last.W.shape != last.total.shape:  # else the last layer is alone, or undone at the end of its block
        for layer in reversed(layers[:-1]):
            result = result @ shares(layer.W[sample], layer.sizes[sample])
    return result


def _tokens(layer: LayerTrace, sample: int) -> Tensor:
    """Rows of W behind the prefix, without padding."""
    return (layer.sizes[sample, layer.prefix :] > 0).nonzero()[:, 0] + layer.prefix


def dimmed(image: np.ndarray, layer: LayerTrace, sample: int) -> np.ndarray:
    """The image with all but the informative tokens dimmed."""
    left = np.zeros(layer.grid[0] * layer.grid[1], dtype=bool)
    patches = layer.origin[sample, _tokens(layer, sample)] - layer.prefix
    left[patches[patches >= 0].cpu().numpy()] = True
    return shaded(image, left.reshape(layer.grid))


def typical_rows(layer: LayerTrace, sample: int, count: int = SHOWN_ROWS) -> list[int]:
    """New tokens worth a look: those that gather the most, (row of W), largest size first, prefix tokens left out."""
    tokens = _tokens(layer, sample)
    return tokens[layer.sizes[sample, tokens].argsort(descending=True, stable=True)[:count]].tolist()


def shared_patch(divided: Tensor, sizes: Tensor, prefix: int) -> int | None:
    """A patch that several tokens share, (column): it goes to good parts into two large ones; None: there is none.

    Args:
        divided: (M, N), from ``flow``.
        sizes: (M,) of the new tokens.
        prefix: prefix tokens P, the first rows and columns.
    """
    inner = divided[prefix:, prefix:]
    if len(inner) < 2:
        return None
    second = torch.where(inner > SHARED, inner.square() * sizes[prefix:, None], 0.0).topk(2, dim=0).values[1]
    return int(second.argmax()) + prefix if second.any() else None


def sharing_rows(divided: Tensor, layer: LayerTrace, sample: int, count: int = SHOWN_ROWS) -> list[int]:
    """New tokens that take part in the shared patch, largest share first; then, if these are few, typical ones."""
    patch = shared_patch(divided, layer.sizes[sample], layer.prefix)
    rows: list[int] = []
    if patch is not None:
        share = divided[layer.prefix :, patch]
        rows = (share.argsort(descending=True)[: int((share > SHARED).sum())] + layer.prefix).tolist()
    return [*rows, *(row for row in typical_rows(layer, sample, 2 * count) if row not in rows)][:count]


def _mark(axes: Axes, patch: int, layer: LayerTrace, shape: tuple[int, ...], ring: bool = False) -> None:
    """A frame around a patch, or a ring."""
    height, width = shape[0] / layer.grid[0], shape[1] / layer.grid[1]
    row, column = divmod(patch, layer.grid[1])
    left, top = column * width - 0.5, row * height - 0.5
    for colour, line in (("black", 3.2), ("white", 1.4)):
        style: dict[str, Any] = {"fill": False, "edgecolor": colour, "linewidth": line, "clip_on": False}
        frame: Patch = Rectangle((left, top), width, height, **style)
        if ring:
            frame = Circle((left + width / 2, top + height / 2), 0.72 * width, **style)
        axes.add_patch(frame)


def _over(image: np.ndarray, colours: np.ndarray, share: np.ndarray | float) -> np.ndarray:
    """Colours (H, W, 3) laid over the image in faint grey."""
    grey = np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2) * 0.45
    return grey * (1 - share) + colours * share


def _heat(
    axes: Axes, image: np.ndarray, layer: LayerTrace, sample: int, row: int, part: tuple[int, float] | None
) -> None:
    """Row of the product of all W up to the layer, over a faint image; the informative token has a frame.

    Args: part: a patch (column of W) that gets a ring, and the row's share of it.
    """
    weights = layer.total[sample, row, layer.prefix :].cpu().numpy().reshape(layer.grid)
    heat = plt.get_cmap("inferno")(_enlarge(weights / weights.max(), image.shape))[..., :3]
    share = _enlarge(np.clip(weights / weights.max() * 3, 0, 0.9), image.shape)[..., None]
    words = f"\ntakes {100 * part[1]:.0f} % of \u25cb" if part and part[1] > SHARED else "\n"
    _show(axes, _over(image, heat, share), f"row of W, s = {layer.sizes[sample, row]:.1f}{words}")
    if layer.origin[sample, row] >= layer.prefix:
        _mark(axes, int(layer.origin[sample, row]) - layer.prefix, layer, image.shape)
    if part and part[1] > SHARED:
        _mark(axes, part[0] - layer.prefix, layer, image.shape, ring=True)


def _division(axes: Axes, image: np.ndarray, divided: Tensor, layer: LayerTrace, patch: int | None) -> None:
    """For every patch, the number of new tokens that share it; one of those that several share gets a ring."""
    counts = (divided[:, layer.prefix :] > SHARED).sum(0).cpu().numpy()
    colours = COUNTS(_enlarge(counts.clip(max=MOST).reshape(layer.grid), image.shape))[..., :3]
    _show(axes, _over(image, colours, 0.75), f"tokens per patch\n{100 * (counts > 1).mean():.0f} % in several")
    if patch is not None:
        _mark(axes, patch - layer.prefix, layer, image.shape, ring=True)


def is_figure(path: Path) -> bool:
    """Whether a file is a picture that Matplotlib has drawn."""
    try:
        with Image.open(path) as image:
            return "matplotlib" in str(image.info.get("Software", "")).lower()
    except Exception:  # no picture, for whatever reason
        return False


def check_figure(path: Path) -> None:
    """Raise ``ValueError`` where a figure would replace something else, or has the name of another kind of file."""
    check_replaceable(path, is_figure, "a figure")
    if path.suffix.lower() != ".png":
        raise ValueError(f"{path} must end in .png: figures are written as PNG")


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG. Raises ``ValueError`` where ``path`` is something else than a figure."""
    check_figure(path)
    atomic_write(path, lambda temporary: figure.savefig(temporary, format="png", dpi=150, bbox_inches="tight"))
    plt.close(figure)


def _legend(figure: Figure, bottom: float) -> None:
    """Two scales and the meaning of the marks, in a strip of ``bottom`` inches."""
    width, height = figure.get_size_inches()
    strips = [figure.add_axes((x / width, (bottom - 0.3) / height, 2.2 / width, 0.11 / height)) for x in (0.3, 3.2)]
    counts = ScalarMappable(BoundaryNorm(np.arange(MOST + 2) - 0.5, COUNTS.N), COUNTS)
    bar = figure.colorbar(counts, cax=strips[0], orientation="horizontal", ticks=range(MOST + 1))
    bar.ax.set_xticklabels([*map(str, range(MOST)), f"{MOST}+"])
    figure.colorbar(ScalarMappable(cmap="inferno"), cax=strips[1], orientation="horizontal")
    strips[0].set_xlabel(f"tokens that take more than {100 * SHARED:.0f} % of a patch")
    strips[1].set_xlabel("weight in the row of W / its largest")
    words = (
        "Bright: informative tokens. W: product of the matrices of all layers. s: patches that a token stands for.\n"
        "Square: the patch that the token grew from. \u25cb: a patch that several tokens share."
    )
    figure.text(5.8 / width, (bottom - 0.42) / height, words, fontsize=10, va="center", linespacing=1.5)


def _row(panels: Sequence[Axes], image: np.ndarray, layers: Sequence[LayerTrace], sample: int) -> None:
    """All panels of one image."""
    last, divided = layers[-1], flow(layers, sample)
    patch = shared_patch(divided, last.sizes[sample], last.prefix)
    _show(panels[0], image, "image\n")
    for panel, layer in zip(panels[1:], layers, strict=False):
        kept = len(_tokens(layer, sample))
        _show(panel, dimmed(image, layer, sample), f"after block {layer.block}:\n{kept} tokens")
    _division(panels[1 + len(layers)], image, divided, last, patch)
    heats = panels[2 + len(layers) :]
    rows = sharing_rows(divided, last, sample)
    for panel, row in zip(heats, rows, strict=False):
        _heat(panel, image, last, sample, row, None if patch is None else (patch, divided[row, patch].item()))
    for panel in heats[len(rows) :]:
        panel.set_axis_off()


def informative_tokens(images: Tensor, layers: Sequence[LayerTrace], how: Preprocessing, path: Path) -> None:
    """Fig. 5: per image, the informative tokens of every reducing layer, how many new tokens share each patch, and
    heat maps of those rows of W that share one patch (where tokens share none: that gather the most).

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
    columns, bottom = 2 + len(layers) + SHOWN_ROWS, 0.85
    size = (PANEL * columns, (PANEL + 0.5) * len(images) + bottom)
    figure, grid = plt.subplots(len(images), columns, figsize=size, squeeze=False)
    for sample, panels in enumerate(grid):
        _row(panels, picture(images[sample], how), layers, sample)
    figure.tight_layout(pad=0.3, h_pad=0.9, rect=(0, bottom / size[1], 1, 1))
    _legend(figure, bottom)
    save(figure, path)
