"""One picture through a model, uncompressed and compressed in one or two ways."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import ttf
from ttf.app.shelf import Loaded
from ttf.app.viewers import Answer

ROUNDS, SECONDS = 7, 0.4  # of the timing: at least five rounds, and no more after that time


@dataclass(frozen=True)
class Way:
    """How to compress.

    Attributes:
        title: what the page calls it.
        options: arguments of ``ttf.apply``.
    """

    title: str
    options: dict[str, Any]


@dataclass(frozen=True)
class Column:
    """What was found of the model in one way.

    Attributes:
        title: "uncompressed" or that of the way.
        answer: what the model says.
        gmacs: multiply-accumulates of this picture / 1e9, the transform included.
        milliseconds: median time of this picture alone.
        speed_up: of the uncompressed model's time, median over rounds.
        change: how far the answer is from the uncompressed one's.
        layers: what every reducing layer did; empty where nothing was reduced.
        remaining: tokens behind each reducing layer, as (block, number), prefix tokens included.
    """

    title: str
    answer: Answer
    gmacs: float
    milliseconds: float
    speed_up: float
    change: dict[str, str]
    layers: Sequence[Any] = ()
    remaining: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Comparison:
    """Everything that the page shows of one picture.

    Attributes:
        image: (3, h, w), as the model sees it.
        columns: the uncompressed model's, then one a way.
        refused: ways that this model cannot go, with the reason.
    """

    image: Tensor
    columns: list[Column]
    refused: dict[str, str]


def twins_of(model: nn.Module, ways: Sequence[Way]) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """The model and a compressed twin of it for every way that it can go; of the others, why not."""
    twins, refused = {"uncompressed": model}, {}
    for way in ways:
        try:
            twins[way.title] = ttf.apply(ttf.twin(model), **way.options)
        except ValueError as error:
            refused[way.title] = str(error)
    return twins, refused


def _remaining(layers: Sequence[Any]) -> tuple[tuple[int, int], ...]:
    return tuple((layer.block, int((layer.sizes[0] > 0).sum())) for layer in layers)


@torch.no_grad()
def compare(loaded: Loaded, picture: Any, ways: Sequence[Way], question: str = "") -> Comparison:
    """Run a picture through the model and its twins, and time them interleaved.

    Args:
        loaded: the model.
        picture: a PIL image in RGB.
        ways: how to compress, titles differ.
        question: for models that are asked one.
    """
    image = loaded.viewer.prepare(picture)
    batch = image.unsqueeze(0).to(next(loaded.model.parameters()).device)
    twins, refused = twins_of(loaded.model, ways)
    answers = {title: loaded.viewer.answer(twin, batch, question) for title, twin in twins.items()}
    times = ttf.measure.interleaved(twins, batch, ROUNDS, SECONDS, warm_up=0)
    base, columns = answers["uncompressed"], []
    for title, twin in twins.items():
        layers = [] if title == "uncompressed" else ttf.trace(twin, batch)
        change = {} if title == "uncompressed" else loaded.viewer.change(answers[title], base)
        costs = (ttf.measure.gmacs(twin, batch.shape, batch), 1e3 * times[title].median_s, times[title].speed_up)
        answer = loaded.viewer.beside(answers[title], base)
        columns.append(Column(title, answer, *costs, change, layers, _remaining(layers)))
    return Comparison(image, columns, refused)
