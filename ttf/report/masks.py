"""Predicted masks side by side: the uncompressed model's, each method's, and where the two differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ttf.data.segmentation import IGNORED, Colour
from ttf.report.figures import save

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

UNLABELLED: Colour = (255, 255, 255)
MARKED = np.array((0.9, 0.1, 0.1))  # pixels that differ
PANEL = 2.6  # inches
MOST_NAMED = 24  # classes in the legend


@dataclass(frozen=True)
class Example:
    """One image with everything that is drawn of it.

    Attributes:
        image: H x W pixels.
        truth: (H, W) int64 labels, 255 where nothing counts.
        base: (H, W) int64, classes that the uncompressed model predicts.
        predictions: title of a method to the classes that the model predicts with it, (H, W) int64.
    """

    image: Image.Image
    truth: Tensor
    base: Tensor
    predictions: Mapping[str, Tensor]


def coloured(labels: Tensor, palette: Sequence[Colour]) -> np.ndarray:
    """Labels (H, W) in the colours of their classes, (H, W, 3) in [0, 1]; white where nothing counts."""
    table = np.full((256, 3), UNLABELLED, dtype=np.float64)
    table[: len(palette)] = palette
    return table[labels.numpy()] / 255


def differing(labels: Tensor, reference: Tensor) -> Tensor:
    """Where two label maps differ, (H, W) bool; not where the reference is ignored."""
    return (labels != reference) & (reference != IGNORED)


def _marked(image: np.ndarray, where: Tensor) -> np.ndarray:
    """The image in faint grey, red ``where`` (H, W)."""
    grey = np.repeat(0.35 + 0.6 * image.mean(axis=2, keepdims=True), 3, axis=2)
    return np.where(where.numpy()[..., None], MARKED, grey)


def _show(axes: Axes, pixels: np.ndarray, title: str) -> None:
    axes.imshow(pixels, interpolation="nearest")
    axes.set_title(title, fontsize=9)
    axes.set_axis_off()


def _share(where: Tensor, reference: Tensor) -> str:
    """Percent of the pixels that count."""
    return f"{100 * where.sum().item() / max(1, (reference != IGNORED).sum().item()):.1f} %"


def _draw(panels: np.ndarray, example: Example, palette: Sequence[Colour]) -> None:
    """Two lines of panels: photograph and predictions; ground truth, errors of the uncompressed model, differences."""
    image = np.asarray(example.image.convert("RGB")) / 255
    _show(panels[0][0], image, "image")
    _show(panels[1][0], coloured(example.truth, palette), "ground truth")
    wrong = differing(example.base, example.truth)
    _show(panels[0][1], coloured(example.base, palette), "uncompressed")
    _show(panels[1][1], _marked(image, wrong), f"wrong: {_share(wrong, example.truth)}")
    for number, (title, labels) in enumerate(example.predictions.items(), 2):
        moved = differing(labels, example.base)
        _show(panels[0][number], coloured(labels, palette), title)
        _show(panels[1][number], _marked(image, moved), f"differs in {_share(moved, example.base)}")


def _legend(drawing: Figure, examples: Sequence[Example], classes: Sequence[str], palette: Sequence[Colour]) -> None:
    """Names of the classes in the picture, the most frequent ones where there are many."""
    maps = [labels for e in examples for labels in (e.truth, e.base, *e.predictions.values())]
    pixels = torch.stack([torch.bincount(labels.flatten(), minlength=IGNORED + 1) for labels in maps]).sum(0)
    counted = pixels[: len(classes)]
    found = [i for i in counted.argsort(descending=True).tolist() if counted[i]][:MOST_NAMED]
    hexadecimal = [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in palette]
    patches = [Patch(facecolor=hexadecimal[i], edgecolor="0.4", label=classes[i]) for i in sorted(found)]
    drawing.legend(handles=patches, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=8, fontsize=8, frameon=False)


def figure(examples: Sequence[Example], classes: Sequence[str], palette: Sequence[Colour], path: Path) -> None:
    """Two lines of panels an image: photograph, masks; below them ground truth and where a mask differs, in red.

    Args:
        examples: all with the same methods.
        classes, palette: names and colours of the K classes.
        path: PNG file to write.
    """
    columns = 2 + len(examples[0].predictions)
    ratio = examples[0].image.height / examples[0].image.width
    size = (PANEL * columns, (PANEL * ratio + 0.25) * 2 * len(examples))
    drawing, grid = plt.subplots(2 * len(examples), columns, figsize=size, squeeze=False)
    for number, example in enumerate(examples):
        _draw(grid[2 * number : 2 * number + 2], example, palette)
    drawing.tight_layout(pad=0.4)
    _legend(drawing, examples, classes, palette)
    save(drawing, path)
