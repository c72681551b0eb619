"""Boxes side by side: what is labelled, what a detector finds with each method, and the tokens that were left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image

from ttf.report.figures import save, shaded

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Patch, Rectangle

PANEL = 2.9  # inches
COLOURS = plt.get_cmap("tab10")
MOST_NAMED = 24  # categories in the legend


@dataclass(frozen=True)
class Drawn:
    """Boxes (N, 4), left, top, right, bottom in pixels of the image, and their labels (N)."""

    boxes: np.ndarray
    labels: Sequence[int]


@dataclass(frozen=True)
class Example:
    """One image.

    Attributes:
        image: H x W pixels.
        truth: what is labelled.
        found: what the uncompressed model and each method find, by title.
        tokens: by title of a method: (rows, columns) bool, patches whose tokens were left; None: all of them.
        window: side in patches of the windows that tokens were reduced in; None: there are none.
    """

    image: Image.Image
    truth: Drawn
    found: Mapping[str, Drawn]
    tokens: Mapping[str, np.ndarray | None]
    window: int | None = None


def _show(axes: Axes, pixels: np.ndarray, title: str) -> None:
    axes.imshow(pixels, interpolation="nearest")
    axes.set_title(title, fontsize=9)
    axes.set_axis_off()


def _outline(axes: Axes, drawn: Drawn) -> None:
    for (x0, y0, x1, y1), label in zip(drawn.boxes.tolist(), drawn.labels, strict=True):
        axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=COLOURS(label % 10), linewidth=1.3))


def _windows(axes: Axes, shape: tuple[int, ...], grid: tuple[int, ...], side: int) -> None:
    """White lines between windows of ``side`` patches."""
    for line in range(side, grid[0], side):
        axes.axhline(line * shape[0] / grid[0] - 0.5, color="white", linewidth=0.9)
    for line in range(side, grid[1], side):
        axes.axvline(line * shape[1] / grid[1] - 0.5, color="white", linewidth=0.9)


def _draw(panels: np.ndarray, example: Example) -> None:
    pixels = np.asarray(example.image.convert("RGB")) / 255
    above = [("labelled", example.truth), *example.found.items()]
    for axes, (title, drawn) in zip(panels[0], above, strict=True):
        _show(axes, pixels, f"{title}: {len(drawn.labels)}")
        _outline(axes, drawn)
    for axes in panels[1][:2]:
        axes.set_axis_off()
    for axes, left in zip(panels[1][2:], example.tokens.values(), strict=True):
        _show(axes, shaded(pixels, left), "all tokens" if left is None else f"{int(left.sum())} tokens")
        if left is not None and example.window:
            _windows(axes, pixels.shape, left.shape, example.window)


def figure(examples: Sequence[Example], classes: Sequence[str], path: Path, note: str = "") -> None:
    """Two lines of panels an image: boxes, and below each method what is left of the tokens.

    Args:
        examples: all with the same methods.
        classes: names of the categories.
        path: PNG file to write.
        note: beside the legend.
    """
    columns, ratio = 1 + len(examples[0].found), examples[0].image.height / examples[0].image.width
    size = (PANEL * columns, (PANEL * ratio + 0.25) * 2 * len(examples))
    drawing, grid = plt.subplots(2 * len(examples), columns, figsize=size, squeeze=False)
    for number, example in enumerate(examples):
        _draw(grid[2 * number : 2 * number + 2], example)
    drawing.tight_layout(pad=0.4)
    every: list[Any] = [drawn for e in examples for drawn in (e.truth, *e.found.values())]
    there = sorted({label for drawn in every for label in drawn.labels})[:MOST_NAMED]
    patches = [Patch(facecolor="none", edgecolor=COLOURS(i % 10), label=classes[i]) for i in there]
    place: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, 0.0), "frameon": False}
    drawing.legend(handles=patches, title=note or None, title_fontsize=8, ncols=8, fontsize=8, **place)
    save(drawing, path)
