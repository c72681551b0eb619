"""What a depth model has to beat: the same depth everywhere."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class ConstantDepth(nn.Module):
    """Images (B, 3, H, W) to a depth (B, H, W) that does not depend on them.

    Args:
        depth: in metres.
        img_size: (height, width) that images are resized to.
    """

    def __init__(self, depth: float, img_size: Sequence[int]) -> None:
        super().__init__()
        self.depth = nn.Parameter(torch.tensor(float(depth)))
        size = {"input_size": (3, *img_size), "mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic"}
        self.pretrained_cfg = size

    def forward(self, images: Tensor) -> Tensor:
        return self.depth + torch.zeros_like(images[:, 0])
