"""Scenes of handwritten digits that lie apart, with their boxes: object detection without any download."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch.utils.data import Dataset

from ttf.data.detection import Boxes, Transform
from ttf.data.scenes import GENERATOR, MAX_APART, NUM_CLASSES, check_set, compose_apart


class SceneBoxes(Dataset[tuple[Any, Any]]):
    """Scenes as ``ttf.data.detection.DetectionSet`` has photographs: ten categories, boxes of what is visible.

    Args:
        split, length, seed: see ``ttf.data.scenes.SceneClassification``; its layout "apart".
        transform: from (PIL image, ``Boxes``) to what an item is.
    """

    classes = tuple(str(digit) for digit in range(NUM_CLASSES))
    categories = tuple(range(NUM_CLASSES))
    most = MAX_APART

    def __init__(self, split: str, length: int, seed: int = 0, transform: Transform | None = None) -> None:
        check_set(length, seed)
        self.split, self.length, self.seed, self.transform = split, length, seed, transform

    def __len__(self) -> int:
        return self.length

    def image(self, index: int) -> Image.Image:
        """Scene ``index`` as a picture."""
        return Image.fromarray(compose_apart(self.seed, index, self.split).image)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        if not 0 <= index < self.length:
            raise IndexError(index)
        scene = compose_apart(self.seed, index, self.split)
        corners = torch.from_numpy(scene.boxes).double()
        xywh = torch.cat((corners[:, :2], corners[:, 2:] - corners[:, :2]), dim=1)
        labels = torch.from_numpy(scene.box_labels)
        boxes = Boxes(xywh, labels, xywh[:, 2:].prod(1), torch.zeros(len(labels), dtype=torch.bool))
        image = Image.fromarray(scene.image)
        return self.transform(image, boxes) if self.transform else (image, boxes)

    def digest(self) -> str:
        """Identity of the set."""
        return f"scene-boxes-{GENERATOR}-{self.split}-{self.seed}-{self.length}"
