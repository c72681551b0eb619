"""Semantic segmentation: mIoU, and how far a compressed model moves from the uncompressed one.

Shapes: H, W of the original image, h, w of the resized one, K classes, n images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.nn import functional as F

from ttf.data.imagenet import BadImageError
from ttf.data.segmentation import IGNORED
from ttf.data.subset import check_on_bad_image
from ttf.metrics import intervals
from ttf.results.store import Row
from ttf.tasks.base import Compression, Outcomes, Task, progress
from ttf.tasks.windows import Inference, Size, enlarged

CHUNK = 16  # classes that are resized at a time: all 150 of a large photograph would take gigabytes
RESAMPLES = 1000


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


@dataclass(frozen=True)
class Scores:
    """Shares in [0, 1], float64; a class that is absent has none (NaN), and the means leave it out.

    Attributes:
        iou: (..., K) right pixels over the union of the class and what was called it.
        accuracy: (..., K) right pixels over those of the class.
        miou, macc: (...) their means over the classes.
        aacc: (...) right pixels over all.
    """

    iou: Tensor
    accuracy: Tensor
    miou: Tensor
    macc: Tensor
    aacc: Tensor


def scores(pixels: Tensor) -> Scores:
    """Scores of ``areas`` (..., 3, K), summed over the images of a set (not averaged)."""
    right, truth, called = pixels.double().unbind(-2)
    iou, accuracy = right / (truth + called - right), right / truth
    return Scores(iou, accuracy, iou.nanmean(-1), accuracy.nanmean(-1), right.sum(-1) / truth.sum(-1))


def resampled(pixels: Tensor, times: int = RESAMPLES, seed: int = 0) -> Scores:
    """Scores of sets drawn from the images with replacement, (times, ...).

    Args:
        pixels: (n, 3, K), ``areas`` of each image.
        times: number of sets.
        seed: the same seed and n draw the same images, so that two models can be compared set by set.
    """
    n = len(pixels)
    drawn = torch.randint(n, (times, n), generator=torch.Generator().manual_seed(seed))
    weights = torch.zeros(times, n, dtype=torch.float64).scatter_add_(1, drawn, torch.ones(times, n).double())
    return scores((weights @ pixels.cpu().double().flatten(1)).unflatten(1, pixels.shape[1:]))


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
        areas: (3, K) int64. kl: nats per pixel. agreement: share of pixels whose class is the uncompressed model's.
    """
    height, width = mask.shape
    kl, agreement = divergence(logits, base)
    matrix = confusion(label_map(logits, (height, width)).cpu(), mask, len(logits))
    return {"areas": areas(matrix), "kl": kl.cpu(), "agreement": agreement.cpu()}


def _percent(value: Tensor, samples: Tensor) -> dict[str, Any]:
    ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
    return {"value": 100 * value.item(), "ci95": (100 * samples.nanquantile(ends)).tolist()}


def metrics(outcomes: dict[str, Tensor]) -> dict[str, dict[str, Any]]:
    """Figures of a set with 95 % intervals over its images.

    Args:
        outcomes: ``outcome`` of all images, stacked: areas (n, 3, K), kl (n,), agreement (n,).

    Returns:
        miou, aacc, macc in percent, with intervals from ``resampled``; agreement in percent and kl in nats per pixel,
        means over the images with normal intervals. Each has value and ci95.
    """
    whole, samples = scores(outcomes["areas"].sum(0)), resampled(outcomes["areas"])
    found = {name: _percent(getattr(whole, name), getattr(samples, name)) for name in ("miou", "aacc", "macc")}
    for name, factor in (("agreement", 100), ("kl", 1)):
        values = factor * outcomes[name].double()
        found[name] = {"value": values.mean().item(), "ci95": list(intervals.mean(values))}
    return found


class Segmentation(Task):
    """Semantic segmentation; ``model.inference`` says how an image comes before the model, see ``Inference``.

    Raises:
        ValueError: the data set is not there, or a value out of its range.
    """

    def __init__(self, cfg: DictConfig) -> None:
        super().__init__(cfg)
        check_on_bad_image(cfg.on_bad_image)
        options: Any = OmegaConf.to_container(cfg.model.inference, resolve=True)
        self.inference = Inference(**options, batch_size=cfg.task.window_batch)

    def settings(self) -> Row:
        """See ``Task.settings``."""
        inference = {name: getattr(self.inference, name) for name in ("shorter", "window", "stride", "longest")}
        return {**super().settings(), "inference": inference}

    def adopt(self, model: nn.Module) -> Row:
        """See ``Task.adopt``. Raises ``ValueError`` where model and data set differ in their classes."""
        known: Any = model
        data: Any = self.set
        found = len(data.classes)
        if known.num_classes != found:
            name = self.cfg.task.dataset
            raise ValueError(f"{self.cfg.model.name} knows {known.num_classes} classes and {name} has {found}")
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

    def outcomes(self, model: nn.Module, weights: str, compression: Compression | None, label: str) -> Outcomes:
        """See ``Task.outcomes``. Both models run on an image before the next: all logits would not fit into memory."""
        found: list[dict[str, Tensor]] = []
        bad: list[str] = []
        with progress(label) as bar:
            for position in bar.track(range(len(self.data))):
                _, item = self.data[position]
                if isinstance(item, BadImageError):
                    if self.cfg.on_bad_image == "stop":
                        raise item
                    bad.append(item.path.name)
                else:
                    found.append(self._outcome(model, compression, *item))
        if not found:
            raise ValueError(f"not a single image could be read: {', '.join(bad[:4])}")
        return Outcomes({name: torch.stack([one[name] for one in found]) for name in found[0]}, bad)

    def _outcome(
        self, model: nn.Module, compression: Compression | None, picture: Any, mask: Tensor
    ) -> dict[str, Tensor]:
        image = self.inference.prepare(picture)
        ours = base = self.inference.logits(model, image)
        if compression is not None:
            with compression():
                ours = self.inference.logits(model, image)
        return outcome(ours, base, mask)

    def metrics(self, images: dict[str, Tensor]) -> dict[str, dict[str, Any]]:
        """See ``Task.metrics``."""
        return metrics(images)
