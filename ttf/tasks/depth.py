"""Depth estimation: the nine errors of Table 3, and how far a compressed model moves from the uncompressed one.

Shapes: H, W of the original image, h, w of the resized one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn

from ttf.data.depth import DepthSet
from ttf.data.depth_protocol import ERRORS, Protocol
from ttf.data.reading import BadImageError
from ttf.metrics.blocks import BLOCK
from ttf.results.store import Row
from ttf.tasks.base import Compression, Outcomes, Task
from ttf.tasks.resizing import Resizing


class Depth(Task):
    """Depth estimation; which pixels count is the data set's ``protocol``.

    Args:
        data, model, ...: as for ``Task``; images go through the model one by one.
        resizing: how an image comes before the model, with the model's own mean and std in place of these.

    Raises:
        ValueError: a value out of its range.
    """

    name = "depth"

    def __init__(
        self, data: Any, model: nn.Module | None = None, *, resizing: Resizing | None = None, **options: Any
    ) -> None:
        self.resizing = resizing or Resizing()
        super().__init__(data, model, **options)
        if self.workers:
            raise ValueError(f"depth reads images in its own process: leave workers={self.workers} out")

    def adopt(self, model: nn.Module) -> Row:
        """See ``Task.adopt``."""
        known: Any = model
        how = known.pretrained_cfg
        self.resizing = replace(self.resizing, mean=tuple(how["mean"]), std=tuple(how["std"]))
        self.input_size = (3, self.resizing.height, self.resizing.width)
        return {**asdict(self.resizing), "protocol": asdict(self.protocol)}

    @property
    def _set(self) -> DepthSet:
        found: Any = self.set
        return found

    @property
    def protocol(self) -> Protocol:
        """Which pixels count."""
        return self._set.protocol

    def images(self, positions: Sequence[int]) -> Tensor:
        """See ``Task.images``. Raises ``ValueError`` where they are of different sizes."""
        prepared = [
            self.resizing.prepare(self.set.image(self.data.indices[p])) for p in positions if p < len(self.data)
        ]
        if len({image.shape for image in prepared}) > 1:
            raise ValueError("these images have different sizes and make no batch: ask for them one by one")
        return torch.stack(prepared)

    def outcomes(self, model: nn.Module, compression: Compression | None, baseline: Row | None, label: str) -> Outcomes:
        """See ``Task.outcomes``. Both models run on an image before the next."""
        return self.one_by_one(label, lambda index, item: self._outcome(model, compression, index, *item))

    def _outcome(
        self, model: nn.Module, compression: Compression | None, index: int, picture: Any, truth: Tensor
    ) -> dict[str, Tensor]:
        """The errors of one image. Raises ``BadImageError`` where no pixel of it counts."""
        image, size = self.resizing.prepare(picture), (truth.shape[0], truth.shape[1])
        ours = base = self.resizing.depth(model, image, size).cpu()
        if compression is not None:
            with compression():
                ours = self.resizing.depth(model, image, size).cpu()
        errors = self.protocol.errors(ours, truth)
        if errors is None:
            raise BadImageError(self._set.name(index), "no depth was measured in it where depths count")
        found = dict(zip(ERRORS, errors, strict=True))
        return {**found, "deviation": deviation(ours, base), BLOCK: torch.tensor(index // self._set.block)}


def deviation(depth: Tensor, base: Tensor) -> Tensor:
    """Mean |p - q| / q over all pixels, p (H, W) of the compressed and q of the uncompressed model."""
    return ((depth - base).abs() / base.clamp_min(1e-3)).mean()
