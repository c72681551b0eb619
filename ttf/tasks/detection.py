"""Object detection: COCO's numbers, and how far a compressed detector moves from the uncompressed one.

Shapes: H, W of the original image, h, w of the resized one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as v2

from ttf.models.detector import Found
from ttf.results.store import Row
from ttf.tasks.base import Compression, Outcomes, Task
from ttf.tasks.matching import agreement, match
from ttf.tasks.windows import resized


@dataclass(frozen=True)
class Detecting:
    """How an image comes before a detector: resized with its proportions kept, normalised, whole.

    Attributes:
        shorter: pixels of the shorter side, unless the longer one would get more than ``longer``.
        longer: the most pixels of the longer side.
        mean, std: per channel, for values in [0, 1].

    Raises:
        ValueError: a side that is not positive, or the longer one below the shorter.
    """

    shorter: int = 800
    longer: int = 1333
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        if not 1 <= self.shorter <= self.longer:
            raise ValueError(f"need 1 <= shorter <= longer, got {self.shorter} and {self.longer}")

    def prepare(self, image: Image.Image) -> Tensor:
        """A picture as the normalised (3, h, w) float32 tensor; not smoothed before it shrinks, as published."""
        size = resized((image.height, image.width), self.shorter, self.longer)
        pixels = v2.resize(v2.pil_to_tensor(image), list(size), InterpolationMode.BILINEAR, antialias=False)
        return v2.normalize(pixels.float() / 255, list(self.mean), list(self.std))

    def found(self, model: nn.Module, image: Tensor, size: tuple[int, int]) -> Found:
        """What a model detects on a prepared image (3, h, w), in pixels of the original one (H, W)."""
        weight, detector = next(model.parameters()), model
        boxes, scores, labels = detector.detect(image.unsqueeze(0).to(weight.device, weight.dtype))[0]  # type: ignore[operator]
        factors = torch.tensor((size[1] / image.shape[2], size[0] / image.shape[1]), dtype=torch.float64).repeat(2)
        return Found(boxes.double().cpu() * factors, scores.double().cpu(), labels.cpu())


class Detection(Task):
    """Object detection.

    Args:
        data, model, ...: as for ``Task``; images go through the model one by one.
        inference: how an image comes before the model, with the model's own mean and std in place of these.

    Raises:
        ValueError: a value out of its range, or model and data set differ in their classes.
    """

    name = "det"

    def __init__(
        self, data: Any, model: nn.Module | None = None, *, inference: Detecting | None = None, **options: Any
    ) -> None:  # fmt: skip
        self.inference = inference or Detecting()
        super().__init__(data, model, batch_size=1, **options)
        if self.workers:
            raise ValueError(f"detection reads images in its own process: leave workers={self.workers} out")

    def adopt(self, model: nn.Module) -> Row:
        """See ``Task.adopt``. Raises ``ValueError`` where model and data set differ in the number of their classes."""
        known: Any = model
        found = len(self.set.classes)  # type: ignore[attr-defined]
        if known.num_classes != found:
            raise ValueError(f"the model knows {known.num_classes} classes and the data set has {found}")
        how = known.pretrained_cfg
        self.inference = replace(self.inference, mean=tuple(how["mean"]), std=tuple(how["std"]))
        height, width = self._prepared(0).shape[1:]
        self.input_size = (3, height, width)
        return asdict(self.inference)

    def _prepared(self, position: int) -> Tensor:
        return self.inference.prepare(self.set.image(self.data.indices[position]))

    def images(self, positions: Sequence[int]) -> Tensor:
        """See ``Task.images``. Raises ``ValueError`` where they are of different sizes."""
        every = [self._prepared(position) for position in positions if position < len(self.data)]
        sizes = {tuple(image.shape) for image in every}
        if len(sizes) > 1:
            raise ValueError(f"images of different sizes cannot go through the model together: {sorted(sizes)[:4]}")
        return torch.stack(every)

    def outcomes(self, model: nn.Module, compression: Compression | None, baseline: Row | None, label: str) -> Outcomes:
        """See ``Task.outcomes``. Both detectors see an image before the next."""
        return self.one_by_one(label, lambda index, item: self._outcome(model, compression, index, *item))

    def _outcome(
        self, model: nn.Module, compression: Compression | None, index: int, picture: Image.Image, truth: Any
    ) -> dict[str, Tensor]:
        """The outcomes of one image: see ``ttf.metrics.detection``."""
        image, size = self.inference.prepare(picture), (picture.height, picture.width)
        ours = base = self.inference.found(model, image, size)
        if compression is not None:
            with compression():
                ours = self.inference.found(model, image, size)
        classes = len(self.set.classes)  # type: ignore[attr-defined]
        return {**match(ours, truth, classes), **agreement(ours, base), "image": torch.tensor(index)}

    def metrics(self, images: dict[str, Tensor]) -> dict[str, dict[str, Any]]:
        """See ``Task.metrics``. Raises ``ValueError`` where there was no object to find."""
        if not images["truth"].any():
            raise ValueError("there is no AP of these images: no object in them is annotated")
        return super().metrics(images)
