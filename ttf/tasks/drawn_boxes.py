"""What a detector finds on some images, uncompressed and with several methods, as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

import ttf
from ttf.models.detector import Found
from ttf.report.boxes import Drawn, Example, figure
from ttf.tasks.detection import Detection
from ttf.tasks.pictures import drawn, item_at, left, ways

LEAST = 0.5  # score of a box that is drawn


def _drawn(found: Found) -> Drawn:
    """The detections that are drawn."""
    sure = found.scores >= LEAST
    return Drawn(found.boxes[sure].numpy(), found.labels[sure].tolist())


def window_side(model: Any) -> int | None:
    """Side in tokens of the windows that a compressed model works in; None where it has none."""
    plan = ttf.plan(model)
    side = getattr(plan.host, "window", None) if plan else None
    return side(model.get_submodule(plan.host.container)[0]) if plan and side else None


def _example(task: Detection, model: nn.Module, position: int, methods: Mapping[str, dict[str, Any]]) -> Example:
    picture, truth = item_at(task, position)
    image, size = task.inference.prepare(picture), (picture.height, picture.width)
    found = {"uncompressed": _drawn(task.inference.found(model, image, size))}
    tokens, window = {}, None
    for title, options in methods.items():
        with ttf.applied(model, **options), torch.inference_mode():
            found[title] = _drawn(task.inference.found(model, image, size))
            tokens[title], window = left(model, image.unsqueeze(0)), window or window_side(model)
    labelled = Drawn(truth.xyxy.numpy(), truth.labels.tolist())
    return Example(picture, labelled, found, tokens, window)


def picture(cfg: DictConfig, path: Path, positions: Sequence[int] | None) -> list[Path]:
    """Draw the images at ``positions`` of the shuffle (None: all of them); what was written.

    Raises:
        ValueError: the model is not for detection, there is no such image, or see ``pictures.chosen``.
    """
    task, found = drawn(cfg, Detection, _example, positions, ways)
    data: Any = task.set
    figure([example for _, example in found], data.classes, path, f"boxes of score {LEAST} and more")
    return [path]
