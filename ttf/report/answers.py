"""Questions about images, what the uncompressed model and each method answer, and the tokens that were left."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

from ttf.report.figures import save, shaded

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

PANEL = 2.3  # inches
LINE = 0.17  # inches of a line of text
WIDTH = 34  # letters of a line
QUESTION = 6.5  # size of its letters: it is the longest text of a panel
COLOURS = {True: "#00703c", False: "#b00020", None: "black"}


@dataclass(frozen=True)
class Said:
    """What a model said about an image.

    Attributes:
        answers: to its questions, in order.
        right: which of them are; None where that is not public.
        left: (rows, columns) bool, patches whose tokens were left; None: all of them.
        tokens: how many the language model read.
    """

    answers: Sequence[str]
    right: Sequence[bool | None]
    left: np.ndarray | None
    tokens: int


@dataclass(frozen=True)
class Example:
    """One image.

    Attributes:
        image: as the tower sees it.
        questions: asked about it.
        said: title of a method to what the model said.
    """

    image: Image.Image
    questions: Sequence[str]
    said: Mapping[str, Said]


def _write(axes: Axes, lines: Sequence[tuple[str, str]], size: float = 7.5) -> None:
    """Lines of text in their colours, from the top."""
    axes.set_axis_off()
    for number, (text, colour) in enumerate(lines):
        axes.text(0, 1 - (number + 1) / (len(lines) + 1), text, fontsize=size, color=colour, va="center")


def figure(examples: Sequence[Example], path: Path) -> None:
    """A line of panels an image, what each method left of it, with the answers below: green right, red wrong.

    Args:
        examples: all with the same methods.
        path: PNG file to write.
    """
    columns, most = 1 + len(examples[0].said), max(len(e.questions) for e in examples)
    heights = [part for _ in examples for part in (PANEL, LINE * (most + 1))]
    options = {"height_ratios": heights, "hspace": 0.12, "wspace": 0.06}
    size = (PANEL * columns, sum(heights) + 0.3 * len(examples))
    drawing, grid = plt.subplots(2 * len(examples), columns, figsize=size, squeeze=False, gridspec_kw=options)
    for number, example in enumerate(examples):
        above, below = grid[2 * number : 2 * number + 2]
        said = [("image", None), *((f"{title}, {one.tokens} tokens", one.left) for title, one in example.said.items())]
        for axes, (title, left) in zip(above, said, strict=True):
            pixels = np.asarray(example.image.convert("RGB")) / 255
            axes.imshow(shaded(pixels, left), interpolation="nearest")
            axes.set_title(textwrap.fill(title, WIDTH), fontsize=8.5)
            axes.set_axis_off()
        _write(below[0], [(textwrap.shorten(text, WIDTH + 8), "black") for text in example.questions], QUESTION)
        for axes, one in zip(below[1:], example.said.values(), strict=True):
            pairs = zip(one.answers, one.right, strict=True)
            shown = ((textwrap.shorten(text, WIDTH) or "(nothing)", right) for text, right in pairs)
            _write(axes, [(text, COLOURS[right]) for text, right in shown])
    save(drawing, path)
