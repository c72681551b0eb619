"""How images come before a depth model, and how its predictions come back to their size.

Shapes: H, W of the original image, h, w of the resized one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as v2

Size = tuple[int, int]


@dataclass(frozen=True)
class Resizing:
    """The resize of DPT's evaluation: proportions are kept, as little change as possible, sides in whole multiples.

    Of the factors that bring the height to ``height`` or the width to ``width``, the one nearer to 1 is taken.

    Attributes:
        height, width: in pixels; 480 x 640 for NYUv2, 352 x 1216 for KITTI.
        multiple: both sides are rounded to multiples of it.
        antialias: smooth before shrinking; the published evaluation does not.
        mean, std: per channel, for values in [0, 1].

    Raises:
        ValueError: a number that is not positive, or a multiple that does not divide height and width.
    """

    height: int = 480
    width: int = 640
    multiple: int = 32
    antialias: bool = False
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        for name in ("height", "width", "multiple"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.height % self.multiple or self.width % self.multiple:
            raise ValueError(
                f"height and width must be multiples of {self.multiple}, got {self.height} and {self.width}"
            )

    def size(self, size: Size) -> Size:
        """(h, w) of an image of ``size`` (H, W).

        Raises:
            ValueError: the image is so narrow that nothing would be left of a side.
        """
        by_height, by_width = self.height / size[0], self.width / size[1]
        factor = by_width if abs(1 - by_width) < abs(1 - by_height) else by_height
        height, width = (round(factor * side / self.multiple) * self.multiple for side in size)
        if min(height, width) < self.multiple:
            raise ValueError(f"an image of {size[0]}x{size[1]} pixels is too narrow for {self.height}x{self.width}")
        return height, width

    def prepare(self, image: Image.Image) -> Tensor:
        """A picture as the normalised (3, h, w) float32 tensor."""
        pixels = v2.pil_to_tensor(image).float().unsqueeze(0) / 255
        size = self.size((image.height, image.width))
        if size != (image.height, image.width):
            pixels = F.interpolate(pixels, size, mode="bicubic", align_corners=False, antialias=self.antialias)
        return v2.normalize(pixels[0], list(self.mean), list(self.std))

    def back(self, depth: Tensor, size: Size) -> Tensor:
        """A prediction (h, w) at the size (H, W) of the image, bicubically."""
        if depth.shape == size:
            return depth
        return F.interpolate(depth[None, None], size, mode="bicubic", align_corners=False)[0, 0]

    @torch.inference_mode()
    def depth(self, model: nn.Module, image: Tensor, size: Size) -> Tensor:
        """The depth (H, W) in metres that a model predicts for a prepared image (3, h, w), float32."""
        weight = next(model.parameters())
        predicted = model(image.to(weight.device, weight.dtype).unsqueeze(0))[0].detach().float()
        return self.back(predicted, size)
