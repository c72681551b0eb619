"""What a vision-language model answers about some images, uncompressed and with several methods, as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import nn

import ttf
from ttf.data.questions import Question
from ttf.models.tower_tokens import feature_block
from ttf.report.answers import Example, Said, figure
from ttf.tasks.pictures import chosen, drawn, left_behind
from ttf.tasks.vqa import QuestionAnswering, score

Way = tuple[dict[str, Any] | None, str]  # arguments of ``ttf.apply`` and the order of tokens


def ways(cfg: DictConfig) -> dict[str, Way]:
    """The uncompressed model and the config's methods, by title. Raises ``ValueError``, see ``pictures.chosen``."""
    compressed = {title: (options, str(own.task.order)) for title, (own, options) in chosen(cfg).items()}
    return {"uncompressed": (None, "raster"), **compressed}


def _left(model: Any, image: torch.Tensor) -> np.ndarray | None:
    """The patches that the tokens grew from which the language model reads, (rows, columns); None: all."""
    plan = ttf.plan(model)
    if plan is None or plan.recovery is not None:
        return None
    layers = ttf.trace(model, image)
    inside = [layer for layer in layers if layer.block < feature_block(model.model.config)] or layers
    return left_behind(inside[-1]) if inside else None


def _questions(task: QuestionAnswering, index: int) -> Sequence[Question]:
    """The questions about an image, each once: splits of POPE share some."""
    data: Any = task.set
    return list({question.text: question for question in data.questions(index)}.values())


def _said(task: QuestionAnswering, model: Any, index: int, way: Way) -> Said:
    options, model.order = way
    inside: AbstractContextManager[Any] = nullcontext() if options is None else ttf.applied(model, **options)
    image, questions = model.preparation(task.set.image(index)).unsqueeze(0), _questions(task, index)
    with torch.no_grad(), inside:
        features = model.features(image)
        left = _left(model, image)
    answers = model.answer([q.text for q in questions], features * len(questions))
    right = [score(text, q) > 0.5 if q.answers else None for text, q in zip(answers, questions, strict=True)]
    return Said(answers, right, left, len(features[0]))


def _example(task: QuestionAnswering, model: nn.Module, position: int, methods: Mapping[str, Way]) -> Example:
    data: Any = task.set
    index = task.data.indices[position]
    said = {title: _said(task, model, index, way) for title, way in methods.items()}
    questions = [question.text for question in _questions(task, index)]
    return Example(task.preparation.square(data.image(index)), questions, said)


def picture(cfg: DictConfig, path: Path, positions: Sequence[int] | None) -> list[Path]:
    """Draw the images at ``positions`` of the shuffle (None: all of them); what was written.

    Raises:
        ValueError: the model is not for questions, there is no such image, or see ``pictures.chosen``.
    """
    _, found = drawn(cfg, QuestionAnswering, _example, positions, ways)
    figure([example for _, example in found], path)
    return [path]
