"""How images come before a segmentation model: resized, whole or in sliding windows.

Shapes: h, w of the resized image, K classes.
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

Size = tuple[int, int]

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
