"""Depth maps side by side: what each method predicts, its relative error, and the tokens that were left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image
from torch import Tensor

from ttf.report.figures import save, shaded

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize

PANEL = 2.5  # inches
DEPTHS, ERRORS = "viridis_r", "magma"
UNMEASURED = "0.75"  # grey
LARGEST_ERROR = 25.0  # percent: what delta_1 forgives
LINES = 3  # of panels an image


@dataclass(frozen=True)
class Predicted:
    """What a model predicts for an image.

    Attributes:
        depth: (H, W) metres.
        left: (rows, columns) bool, patches whose tokens were left; None: all of them.
        abs_rel: mean relative error; None where nothing was measured.
    """

    depth: Tensor
    left: np.ndarray | None
    abs_rel: float | None


@dataclass(frozen=True)
class Example:
    """One image.

    Attributes:
        image: H x W pixels.
        truth: (H, W) metres, 0 where no pixel counts.
        predictions: by title.
    """

    image: Image.Image
    truth: Tensor
    predictions: Mapping[str, Predicted]


def _show(axes: Any, values: Any, title: str, **how: Any) -> None:
    axes.imshow(values, interpolation="nearest", **how)
    axes.set_title(title, fontsize=9)
    axes.set_axis_off()


def _masked(values: Tensor, truth: Tensor) -> np.ma.MaskedArray[Any, Any]:
    return np.ma.masked_where((truth <= 0).numpy(), values.numpy())


def _map(name: str) -> Any:
    return plt.get_cmap(name).with_extremes(bad=UNMEASURED)


def _draw(panels: np.ndarray, example: Example, metres: Normalize, percent: Normalize) -> None:
    pixels = np.asarray(example.image.convert("RGB")) / 255
    depths, errors = ({"cmap": _map(name), "norm": norm} for name, norm in ((DEPTHS, metres), (ERRORS, percent)))
    _show(panels[0][0], pixels, "image")
    _show(panels[1][0], _masked(example.truth, example.truth), "measured", **depths)
    panels[2][0].set_axis_off()
    for number, (title, predicted) in enumerate(example.predictions.items(), 1):
        _show(panels[0][number], predicted.depth.numpy(), title, **depths)
        wrong = 100 * (predicted.depth - example.truth).abs() / example.truth.clamp_min(1e-6)
        words = "" if predicted.abs_rel is None else f"AbsRel {predicted.abs_rel:.3f}"
        _show(panels[1][number], _masked(wrong, example.truth), words, **errors)
        count = "all" if predicted.left is None else str(int(predicted.left.sum()))
        _show(panels[2][number], shaded(pixels, predicted.left), f"{count} tokens")


def _norm(example: Example) -> Normalize:
    """One scale of depths for all panels of an image."""
    measured = example.truth[example.truth > 0]
    values = measured if len(measured) else next(iter(example.predictions.values())).depth.flatten()
    return Normalize(values.quantile(0.01).item(), values.quantile(0.99).item())


def figure(examples: Sequence[Example], path: Path) -> None:
    """Three lines of panels an image, each method a column: depth, relative error, tokens that were left.

    Args:
        examples: all with the same methods.
        path: PNG file to write.
    """
    columns, ratio = 1 + len(examples[0].predictions), examples[0].image.height / examples[0].image.width
    size = (PANEL * columns + 0.8, (PANEL * ratio + 0.25) * LINES * len(examples))
    drawing, grid = plt.subplots(LINES * len(examples), columns, figsize=size, squeeze=False, layout="constrained")
    percent = Normalize(0, LARGEST_ERROR)
    for number, example in enumerate(examples):
        panels, metres = grid[LINES * number : LINES * (number + 1)], _norm(example)
        _draw(panels, example, metres, percent)
        bars = ((0, DEPTHS, metres, "metres"), (1, ERRORS, percent, "error, %"))
        for line, colours, norm, words in bars:
            bar = drawing.colorbar(ScalarMappable(norm, colours), ax=panels[line].tolist(), pad=0.01, aspect=12)
            bar.set_label(words, fontsize=9)
    save(drawing, path)
