"""Scenes of handwritten digits with their depth: near ones are large and cover far ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ttf.data.depth import DepthSet
from ttf.data.scenes import GENERATOR, compose


class SceneDepth(DepthSet):
    """Scenes as a data set of depth: a digit of one metre height stands 48 / (its height in pixels) metres away.

    Args:
        split, length, seed: see ``ttf.data.scenes.SceneClassification``.
        **options: see ``DepthSet``; without a crop unless told.
    """

    def __init__(self, split: str, length: int, seed: int = 0, **options: Any) -> None:
        super().__init__(**{"crop": None, **options})
        self.split, self.length, self.seed = split, length, seed

    def __len__(self) -> int:
        return self.length

    def image(self, index: int) -> Image.Image:
        """Scene ``index`` as a picture."""
        return Image.fromarray(compose(self.seed, index, self.split).image)

    def depth(self, index: int) -> Tensor:
        """Its depth, (96, 96) metres: of every pixel, 0.75 to 9."""
        return torch.from_numpy(compose(self.seed, index, self.split).depth)

    def name(self, index: int) -> Path:
        """See ``DepthSet.name``."""
        return Path(f"scene {index}")

    def digest(self) -> str:
        """Identity of the set."""
        return f"scene-depth-{GENERATOR}-{self.split}-{self.seed}-{self.length}"
