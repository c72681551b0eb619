"""What a segmentation model predicts for some images, uncompressed and with several methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig
from torch import nn

import ttf
from ttf.report.masks import Example
from ttf.tasks.pictures import drawn, item_at, ways
from ttf.tasks.segmentation import Segmentation, label_map


def _example(task: Segmentation, model: nn.Module, position: int, methods: Mapping[str, dict[str, Any]]) -> Example:
    picture, truth = item_at(task, position)
    image, size = task.inference.prepare(picture), (truth.shape[0], truth.shape[1])
    base = label_map(task.inference.logits(model, image), size).cpu()
    predictions = {}
    for title, options in methods.items():
        with ttf.applied(model, **options):
            predictions[title] = label_map(task.inference.logits(model, image), size).cpu()
    return Example(picture, truth, base, predictions)


def examples(cfg: DictConfig, positions: Sequence[int] | None) -> tuple[list[Example], Any]:
    """Predictions for the images at ``positions`` of the shuffle (None: all of them), and the data set.

    Raises:
        ValueError: the model is not for segmentation, there is no such image, or see ``pictures.chosen``.
    """
    task, found = drawn(cfg, Segmentation, _example, positions, ways)
    return [example for _, example in found], task.set
