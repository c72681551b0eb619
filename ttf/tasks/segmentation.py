"""Semantic segmentation: mIoU, and how far a compressed model moves from the uncompressed one.

Shapes: H, W of the original image, h, w of the resized one, K classes, n images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ttf.data.segmentation import IGNORED
from ttf.results.store import Row
from ttf.tasks.base import Compression, Outcomes, Task
from ttf.tasks.windows import Inference, Size, enlarged

CHUNK = 16  # classes that are resized at a time: all 150 of a large photograph would take gigabytes


@torch.inference_mode()
def label_map(logits: Tensor, size: Size) -> Tensor:
    """The class of every pixel, (H, W) int64: logits (K, h, w) resized bilinearly to ``size``, then the largest."""
    best: Tensor | None = None
    labels = torch.zeros(size, dtype=torch.int64, device=logits.device)
    for first in range(0, len(logits), CHUNK):
        part = logits[first : first + CHUNK].unsqueeze(0)
        value, index = F.interpolate(part, size, mode="bilinear", align_corners=False)[0].max(dim=0)
        better = value > best if best is not None else torch.ones_like(index, dtype=torch.bool)
        labels = torch.where(better, index + first, labels)
        best = value if best is None else torch.maximum(best, value)
    return labels


def confusion(predicted: Tensor, mask: Tensor, num_classes: int) -> Tensor:
    """How often a pixel of class i was called j, (K, K) int64; ignored pixels do not count.

    Raises:
        ValueError: the mask has a label that the model does not know.
    """
    counted = mask != IGNORED
    truth, answer = mask[counted], predicted.to(mask.device)[counted]
    if truth.numel() and int(truth.max()) >= num_classes:
        raise ValueError(
            f"the mask has label {int(truth.max())} and the model knows {num_classes} classes: "
            "take weights that were trained for this data set"
        )
    return torch.bincount(truth * num_classes + answer, minlength=num_classes**2).view(num_classes, num_classes)


def areas(matrix: Tensor) -> Tensor:
    """What the scores need of a confusion matrix (..., K, K): (..., 3, K) pixels right, of the class, called so."""
    return torch.stack((matrix.diagonal(dim1=-2, dim2=-1), matrix.sum(-1), matrix.sum(-2)), dim=-2)


@torch.inference_mode()
def divergence(logits: Tensor, base: Tensor) -> tuple[Tensor, Tensor]:
    """KL(base || ours) of the class probabilities in nats, and the share of pixels of the same class.

    Args:
        logits, base: (K, h, w) of the compressed and of the uncompressed model.

    Returns:
        Two float32 scalars, means over the pixels.
    """
    log_p, log_q = base.log_softmax(0), logits.log_softmax(0)
    kl = F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(0).mean()
    return kl, (logits.argmax(0) == base.argmax(0)).float().mean()


def outcome(logits: Tensor, base: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """What a row is made of, for one image.

    Args:
        logits, base: (K, h, w), see ``divergence``.
        mask: (H, W) int64 labels, 255 ignored.

    Returns:
        areas: (3, K) int32. kl: nats per pixel. agreement: share of pixels whose class is the uncompressed model's.
    """
    height, width = mask.shape
    kl, agreement = divergence(logits, base)
    matrix = confusion(label_map(logits, (height, width)).cpu(), mask, len(logits))
    return {"areas": areas(matrix).int(), "kl": kl.cpu(), "agreement": agreement.cpu()}


class Segmentation(Task):
    """Semantic segmentation.

    Args:
        data, model, ...: as for ``Task``; ``batch_size`` is that of the windows of an image.
        inference: how an image comes before the model, with the model's own mean and std in place of these.

    Raises:
        ValueError: a value out of its range, or model and data set differ in their classes.
    """

    name = "seg"

    def __init__(
        self,
        data: Any,
        model: nn.Module | None = None,
        *,
        inference: Inference | None = None,
        batch_size: int = 4,
        **options: Any,
    ) -> None:
        self.inference = replace(inference or Inference(), batch_size=batch_size)
        super().__init__(data, model, batch_size=batch_size, **options)
        if self.workers:
            raise ValueError(f"segmentation reads images in its own process: leave workers={self.workers} out")

    def adopt(self, model: nn.Module) -> Row:
        """See ``Task.adopt``. Raises ``ValueError`` where model and data set differ in their classes."""
        known: Any = model
        data: Any = self.set
        found = len(data.classes)
        if known.num_classes != found:
            raise ValueError(f"the model knows {known.num_classes} classes and the data set has {found}")
        how = known.pretrained_cfg
        self.inference = replace(self.inference, mean=tuple(how["mean"]), std=tuple(how["std"]))
        side = self.inference.window
        height, width = (side, side) if side else self._prepared(0).shape[1:]
        self.input_size = (3, height, width)
        return asdict(self.inference)

    def _prepared(self, position: int) -> Tensor:
        return self.inference.prepare(self.set.image(self.data.indices[position]))

    def images(self, positions: Sequence[int]) -> Tensor:
        """See ``Task.images``; the first window of each."""
        _, height, width = self.input_size
        crops = [enlarged(self._prepared(p), max(height, width)) for p in positions if p < len(self.data)]
        return torch.stack([crop[:, :height, :width] for crop in crops])

    def outcomes(self, model: nn.Module, compression: Compression | None, baseline: Row | None, label: str) -> Outcomes:
        """See ``Task.outcomes``. Both models run on an image before the next: all logits would not fit into memory."""
        return self.one_by_one(label, lambda _, item: self._outcome(model, compression, *item))

    def _outcome(
        self, model: nn.Module, compression: Compression | None, picture: Any, mask: Tensor
    ) -> dict[str, Tensor]:
        image = self.inference.prepare(picture)
        ours = base = self.inference.logits(model, image)
        if compression is not None:
            with compression():
                ours = self.inference.logits(model, image)
        return outcome(ours, base, mask)
