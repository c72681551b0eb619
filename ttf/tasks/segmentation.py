"""Semantic segmentation: logits of whole images by sliding windows, mIoU, and how far a compressed model moves.

Shapes: H, W of the original image, h, w of the resized one, K classes, n images.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as v2

from ttf.data.segmentation import IGNORED
from ttf.tasks import intervals

Size = tuple[int, int]

CHUNK = 16  # classes that are resized at a time: all 150 of a large photograph would take gigabytes
RESAMPLES = 1000
NARROWEST = 32  # longer side over shorter side of an image that is enlarged to a window


@dataclass(frozen=True)
class Inference:
    """How an image is put before the model, as in the published evaluation of Segmenter.

    Attributes:
        shorter: pixels of the shorter side after the resize (512 or 640 on ADE20K); None: no resize (Cityscapes).
        window: side of the square windows in pixels; None: the whole image at once.
        stride: from one window to the next in pixels; None: the window's side.
        longest: the longer side is at most so many times ``shorter``.
        mean, std: per channel, for values in [0, 1].
        batch_size: windows of an image that go through the model together.

    Raises:
        ValueError: a number that is not positive, or a stride that leaves gaps.
    """

    shorter: int | None = None
    window: int | None = None
    stride: int | None = None
    longest: float = 4.0
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    batch_size: int = 1

    def __post_init__(self) -> None:
        for name in ("shorter", "window", "stride", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.stride is not None and self.window is None:
            raise ValueError(f"stride {self.stride} goes from window to window: give window, or leave stride out")
        if self.stride is not None and self.window is not None and self.stride > self.window:
            raise ValueError(f"stride {self.stride} leaves gaps between windows: give at most {self.window}")

    def prepare(self, image: Image.Image) -> Tensor:
        """A picture as the normalised (3, h, w) float32 tensor."""
        pixels = v2.pil_to_tensor(image)
        if self.shorter is not None:
            size = resized((image.height, image.width), self.shorter, self.longest * self.shorter)
            # the published evaluation does not smooth before it shrinks
            pixels = v2.resize(pixels, list(size), InterpolationMode.BILINEAR, antialias=False)
        return v2.normalize(pixels.float() / 255, list(self.mean), list(self.std))

    def logits(self, model: nn.Module, image: Tensor) -> Tensor:
        """Logits (K, h, w) of a prepared image (3, h, w); see ``slide``."""
        if self.window is not None:
            return slide(model, image, self.window, self.stride or self.window, self.batch_size)
        with torch.inference_mode():
            return _finite(model(_like(model, image).unsqueeze(0))[0].float())


def resized(size: Size, shorter: int, longer: float) -> Size:
    """Height and width in the same proportions: the shorter side gets ``shorter``, or the longer one ``longer``."""
    scale = min(longer / max(size), shorter / min(size))
    height, width = (max(1, int(side * scale + 0.5)) for side in size)
    return height, width


def starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows start along a side; the last one touches the border."""
    return [*range(0, length - window, stride), length - window]


def enlarged(image: Tensor, window: int) -> Tensor:
    """An image (3, h, w) whose shorter side is at least ``window``; larger ones as they are.

    Raises:
        ValueError: the image is so narrow that its longer side would fill the memory.
    """
    height, width = image.shape[-2:]
    least = min(height, width)
    if least >= window:
        return image
    if max(height, width) > NARROWEST * least:
        raise ValueError(
            f"an image of {height}x{width} pixels is too narrow for windows of {window}: leave window out, or crop it"
        )
    size = (height * window // least, width * window // least)
    return F.interpolate(image.unsqueeze(0), size, mode="bilinear", align_corners=False)[0]


def _like(model: nn.Module, image: Tensor) -> Tensor:
    weight = next(model.parameters())
    return image.to(weight.device, weight.dtype)


def _finite(logits: Tensor) -> Tensor:
    if not bool(torch.isfinite(logits).all()):
        raise ValueError("the model gives NaN or infinite logits: check weights and dtype")
    return logits


def _windows(image: Tensor, window: int, stride: int, batch_size: int) -> Iterator[tuple[list[Any], Tensor]]:
    """Batches of windows (b, 3, window, window), each with the places that its windows have in the image."""
    rows, columns = (starts(side, window, stride) for side in image.shape[-2:])
    places = [(..., slice(y, y + window), slice(x, x + window)) for y in rows for x in columns]
    for first in range(0, len(places), batch_size):
        part = places[first : first + batch_size]
        yield part, torch.stack([image[place] for place in part])


@torch.inference_mode()
def slide(model: nn.Module, image: Tensor, window: int, stride: int, batch_size: int = 1) -> Tensor:
    """Logits of an image from square windows, averaged where they overlap.

    Args:
        model: (b, 3, window, window) to (b, K, window, window).
        image: (3, h, w), normalised; enlarged where its shorter side is below the window.
        window, stride: in pixels. The last window of a side is shifted back to the border.
        batch_size: windows that go through the model together.

    Returns:
        (K, h, w) float32 on the model's device, h and w those of the enlarged image.

    Raises:
        ValueError: the logits are not finite, or see ``enlarged``.
    """
    image = enlarged(_like(model, image), window)
    total, count = torch.zeros(()), torch.zeros(image.shape[-2:], device=image.device)
    for places, crops in _windows(image, window, stride, batch_size):
        for place, logits in zip(places, model(crops).float(), strict=True):
            total = total if total.dim() else logits.new_zeros(len(logits), *image.shape[-2:])
            total[place] += logits
            count[place] += 1
    return _finite(total / count)


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
