"""PS-ViT (arXiv 2108.01684): tokens are sampled from a feature map at points that move from layer to layer.

State dict as in the official PS-ViT-B/14 (yuexy/PS-ViT, MIT). Points are (y, x) in pixels of the feature map, where an
integer is the centre of a pixel. Shapes: B batch, N tokens, C channels.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn
from torch.nn import functional as F

from ttf.models.trunk import ClassTokenModel, block, initialise, layer_norm

STEM_STRIDE = 4
MIDDLE = 256  # channels between the two bottlenecks of the stem


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with BatchNorm, and a 1x1 convolution with BatchNorm beside them."""

    def __init__(self, incoming: int, hidden: int, outgoing: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(incoming, hidden, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.conv3 = nn.Conv2d(hidden, outgoing, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outgoing)
        self.downsample = nn.Sequential(nn.Conv2d(incoming, outgoing, 1, bias=False), nn.BatchNorm2d(outgoing))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return F.relu(self.bn3(self.conv3(out)) + self.downsample(x))


def stem(width: int, hidden: int = 64) -> nn.Sequential:
    """Images (B, 3, H, W) to a feature map (B, width, H/4, W/4)."""
    return nn.Sequential(
        nn.Conv2d(3, hidden, 7, stride=2, padding=3, bias=False),
        nn.BatchNorm2d(hidden),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2, padding=1),
        Bottleneck(hidden, hidden, MIDDLE),
        Bottleneck(MIDDLE, hidden, width),
    )


def start_points(side: int, count: int) -> Tensor:
    """Centres of a regular grid on a square map, (1, count * count, 2): column after column, each from top to bottom.

    The first is at half the spacing, which is half a pixel beyond the centre of its cell: as in the official code.

    Args:
        side: of the map, in pixels.
        count: points per row and column.
    """
    spacing = side / count
    line = spacing / 2 + spacing * torch.arange(count)
    x, y = torch.meshgrid(line, line, indexing="ij")
    return torch.stack((y.flatten(), x.flatten()), dim=-1).unsqueeze(0)


def sample(features: Tensor, points: Tensor) -> Tensor:
    """Bilinear samples (B, N, C) of a square map (B, C, S, S) at points (B, N, 2); outside of the map it is 0."""
    scaled = 2 * points.flip(-1) / (features.shape[-1] - 1) - 1  # -1 and 1 are the centres of the outermost pixels
    grid = scaled.unsqueeze(2).to(features.dtype)
    sampled = F.grid_sample(features, grid, mode="bilinear", padding_mode="zeros", align_corners=True)
    return sampled.squeeze(-1).transpose(1, 2)


class SamplingLayer(nn.Module):
    """Samples at moved points, a transformer layer on what was sampled so far, and the next move.

    Args:
        width, heads, mlp_ratio: of the transformer layer.
        position_layer: (y, x) as shares of the map to a position (B, N, width); shared by all layers.
        gamma: factor of the offset where the map is sampled.
        last: the last layer predicts no offset.
        drop_path: rate of stochastic depth.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_ratio: float,
        position_layer: nn.Module,
        gamma: float = 1.0,
        last: bool = False,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.gamma = gamma
        self.transformer_layer = block(width, heads, mlp_ratio, drop_path)
        self.position_layer = position_layer
        self.offset_layer = None if last else nn.Linear(width, 2)

    def forward(
        self, features: Tensor, points: Tensor, offset: Tensor | None = None, previous: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """One layer.

        Args:
            features: (B, C, S, S), the map.
            points: (B, N, 2).
            offset: (B, N, 2), or None for 0.
            previous: (B, N, C) tokens of the layer before, or None.

        Returns:
            tokens (B, N, C), the next offset (B, N, 2) or None, and the points moved by the offset, without gradient.
        """
        where = points if offset is None else points + self.gamma * offset
        moved = points if offset is None else (points + offset).detach()
        x = sample(features, where) + self.position_layer(moved / features.shape[-1])
        x = self.transformer_layer(x if previous is None else x + previous)
        return x, None if self.offset_layer is None else self.offset_layer(x), moved


class PSViT(ClassTokenModel):
    """PS-ViT; the defaults are PS-ViT-B/14.

    The sampling layers see patch tokens alone; the class token, which has no position, joins them for ``trans_layers``.
    There patch token r * columns + c is the one that started in row r and column c; in the sampling layers, whose start
    points are stored column after column, the order is that of the points.

    Args:
        img_size: side of the images in pixels, a multiple of 16.
        num_classes: outputs of the head.
        count: points per row and column (of 224 pixels: 10, 14 or 18); None: one in 16 pixels.
        width, heads, mlp_ratio: of all transformer layers.
        sampling: number of sampling layers, at least 1.
        depth: number of ordinary layers after them.
        gamma: see ``SamplingLayer``.
        drop_path: rate of stochastic depth in the last layer, growing evenly from 0 in the first sampling layer.
    """

    container: ClassVar[str] = "trans_layers"
    point_coord: Tensor

    def __init__(
        self,
        img_size: int = 224,
        num_classes: int = 1000,
        count: int | None = None,
        width: int = 384,
        heads: int = 6,
        mlp_ratio: float = 3.0,
        sampling: int = 4,
        depth: int = 10,
        gamma: float = 1.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__(img_size, num_classes)
        self.count = count or super().grid((img_size, img_size))[0]
        self.register_buffer("point_coord", start_points(img_size // STEM_STRIDE, self.count))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_layer = nn.Linear(2, width)
        self.stem = stem(width)
        shape = (width, heads, mlp_ratio)
        rates = torch.linspace(0, drop_path, sampling + depth).tolist()
        self.ps_layers = nn.ModuleList(
            SamplingLayer(*shape, self.pos_layer, gamma, i == sampling - 1, rates[i]) for i in range(sampling)
        )
        self.trans_layers = nn.Sequential(*(block(*shape, rate) for rate in rates[sampling:]))
        self.norm = layer_norm(width)
        self.head = nn.Linear(width, num_classes)
        self.apply(initialise)
        trunc_normal_(self.cls_token, std=0.02)

    @property
    def blocks(self) -> nn.Sequential:
        """The layers in which tokens can be reduced, by the name that other models have for them."""
        return self.trans_layers

    def grid(self, size: Any) -> tuple[int, int]:
        """Rows and columns of the points, which do not depend on ``size``."""
        return self.count, self.count

    def sampled(self, images: Tensor) -> Tensor:
        """Patch tokens (B, N, C) after the sampling layers, in the order of the points."""
        features = self.stem(images)
        first, *others = self.ps_layers
        x, offset, points = first(features, self.point_coord.expand(len(images), -1, -1))
        for layer in others:
            x, offset, points = layer(features, points, offset, x)
        return x

    def embed(self, images: Tensor) -> Tensor:
        """See ``ClassTokenModel.embed``; patch tokens row after row."""
        self._check(images)
        patches = self.sampled(images).unflatten(1, (self.count, self.count)).transpose(1, 2).flatten(1, 2)
        return torch.cat((self.cls_token.expand(len(patches), -1, -1), patches), dim=1)


def ps_vit_b_14(num_classes: int = 1000, **kwargs: Any) -> PSViT:
    """PS-ViT-B/14: 21.3 M parameters, 5.4 GMACs, 81.7 top-1 (published). ``kwargs``: see ``PSViT``."""
    return PSViT(num_classes=num_classes, **kwargs)
