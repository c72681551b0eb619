"""What a vision-language model answers about some images, uncompressed and with several methods."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

import ttf
from ttf.bench.entries import experiment
from ttf.models.tower_tokens import feature_block
from ttf.models.weights import load_model
from ttf.report.answers import Example, Said
from ttf.tasks.options import check_pair, make_task
from ttf.tasks.vqa import QuestionAnswering, score

Way = tuple[dict[str, Any] | None, str]  # arguments of ``ttf.apply`` and the order of tokens


def ways(cfg: DictConfig) -> dict[str, Way]:
    """The uncompressed model and the experiments in ``cfg.ways``, by title."""
    found: dict[str, Way] = {"uncompressed": (None, "raster")}
    for words in cfg.ways:
        name, chosen, options = experiment(words, cfg.model.name)
        found[chosen.title or name] = (options, str(chosen.task.get("order", "raster")))
    return found


def _left(model: Any, image: torch.Tensor) -> np.ndarray | None:
    """The patches that the tokens grew from which the language model reads, (rows, columns); None: all."""
    plan = ttf.plan(model)
    if plan is None or plan.recovery is not None:
        return None
    layers = ttf.trace(model, image)
    inside = [layer for layer in layers if layer.block < feature_block(model.model.config)] or layers
    rows, columns = inside[-1].grid
    patches = inside[-1].origin[0, plan.prefix :] - plan.prefix
    return torch.zeros(rows * columns, dtype=torch.bool).scatter(0, patches, True).reshape(rows, columns).numpy()


def _said(task: QuestionAnswering, model: Any, index: int, way: Way) -> Said:
    options, model.order = way
    inside: AbstractContextManager[Any] = nullcontext() if options is None else ttf.applied(model, **options)
    data: Any = task.set
    image, questions = model.preparation(task.set.image(index)).unsqueeze(0), data.questions(index)
    with torch.no_grad(), inside:
        features = model.features(image)
        left = _left(model, image)
    answers = model.answer([q.text for q in questions], features * len(questions))
    right = [score(text, q) > 0.5 for text, q in zip(answers, questions, strict=True)]
    return Said(answers, right, left, len(features[0]))


def examples(cfg: DictConfig, positions: Sequence[int] | None) -> list[Example]:
    """Answers to the questions about the images at ``positions`` of the shuffle; None: all of them.

    Raises:
        ValueError: the model is not for questions, or there is no such image.
    """
    check_pair(cfg)
    task = make_task(cfg)
    assert isinstance(task, QuestionAnswering)
    task.check_positions(positions or ())
    model = load_model(cfg.model, cfg.checkpoint, cfg.paths.weights, cfg.paths.downloads)
    task.adopt(model)
    found, data = [], task.set
    for position in range(len(task.data)) if positions is None else positions:
        index = task.data.indices[position]
        said = {title: _said(task, model, index, way) for title, way in ways(cfg).items()}
        picture = task.preparation.square(data.image(index))
        questions: Any = data
        found.append(Example(picture, [q.text for q in questions.questions(index)], said))
    return found
