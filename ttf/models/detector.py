"""Small one-level detectors with FCOS's head (arXiv 1904.01355), over a plain ViT as in ViTDet or over a Swin.

Shapes: B batch, K categories, C channels, h, w rows and columns of the map, N detections. Boxes are left, top, right,
bottom in pixels of the network's input.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import batched_nms

from ttf.models.segmenter import HALF, PATCH, Encoder, as_map
from ttf.models.swin import SwinTransformer
from ttf.models.trunk import initialise

STRIDE = 8
CANDIDATES = 1000  # of an image, before duplicates are removed
FARTHEST = 7.0  # exponent of a distance in strides
RARE = 0.01  # share of the places that show an object, before any training


class Maps(NamedTuple):
    """What a head says of every place: class logits (B, K, h, w), distances from the place's centre to the box's left,
    top, right and bottom in pixels (B, 4, h, w), logits of centre-ness (B, 1, h, w)."""

    classes: Tensor
    distances: Tensor
    centre: Tensor


class Found(NamedTuple):
    """Detections of one image, best first: boxes (N, 4), scores (N,) in [0, 1], labels (N,) int64."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor


def centres(rows: int, columns: int, stride: int, like: Tensor) -> Tensor:
    """The centre (x, y) of every place, (rows * columns, 2) in pixels."""
    y, x = torch.meshgrid(
        torch.arange(rows, device=like.device), torch.arange(columns, device=like.device), indexing="ij"
    )
    return (torch.stack((x, y), dim=-1).flatten(0, 1).to(like.dtype) + 0.5) * stride


def boxes_around(points: Tensor, distances: Tensor) -> Tensor:
    """Boxes (..., 4) from points (..., 2) and distances to the left, top, right and bottom (..., 4)."""
    return torch.cat((points - distances[..., :2], points + distances[..., 2:]), dim=-1)


def _tower(width: int, depth: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Conv2d(width, width, 3, padding=1, bias=False), nn.GroupNorm(8, width), nn.ReLU()]
    return nn.Sequential(*layers)


class FCOSHead(nn.Module):
    """Features (B, C, h, w) to ``Maps``.

    Args:
        width: channels C. num_classes: K. depth: convolutions of each of the two towers. stride: pixels of a place.
    """

    def __init__(self, width: int, num_classes: int, depth: int = 2, stride: int = STRIDE) -> None:
        super().__init__()
        self.stride = stride
        self.class_tower, self.box_tower = _tower(width, depth), _tower(width, depth)
        self.classes = nn.Conv2d(width, num_classes, 3, padding=1)
        self.distances = nn.Conv2d(width, 4, 3, padding=1)
        self.centre = nn.Conv2d(width, 1, 3, padding=1)
        for layer, bias in ((self.classes, math.log(RARE / (1 - RARE))), (self.distances, 1.0), (self.centre, 0.0)):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.constant_(cast(Tensor, layer.bias), bias)

    def forward(self, features: Tensor) -> Maps:
        boxes = self.box_tower(features)
        distances = self.stride * self.distances(boxes).clamp(max=FARTHEST).exp()
        return Maps(self.classes(self.class_tower(features)), distances, self.centre(boxes))


class Detector(nn.Module):
    """Base: images (B, 3, H, W) of any size to ``Maps`` of ceil(H / 8) x ceil(W / 8) places.

    Args:
        num_classes: K.
        width: channels of the features that the head gets.
        divisor: images are filled up with zeros at the right and at the bottom to multiples of it.
        input_size: (height, width) of the images that the model is trained on.
    """

    def __init__(self, num_classes: int, width: int, divisor: int, input_size: Sequence[int]) -> None:
        super().__init__()
        self.num_classes, self.divisor = num_classes, divisor
        self.head = FCOSHead(width, num_classes)
        height, columns = input_size
        self.pretrained_cfg = {
            "input_size": (3, height, columns), "num_classes": num_classes, "mean": HALF, "std": HALF,
            "interpolation": "bilinear",
        }  # fmt: skip

    def features(self, images: Tensor) -> Tensor:
        """Images whose sides are multiples of the divisor to features (B, C, H / 8, W / 8)."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Maps:
        height, width = images.shape[-2:]
        filled = F.pad(images, (0, -width % self.divisor, 0, -height % self.divisor))
        maps = self.head(self.features(filled))
        rows, columns = -(-height // self.head.stride), -(-width // self.head.stride)
        return Maps(*(part[..., :rows, :columns] for part in maps))

    @torch.inference_mode()
    def detect(self, images: Tensor, least_score: float = 0.05, overlap: float = 0.6, most: int = 100) -> list[Found]:
        """Detections of every image.

        Args:
            images: (B, 3, H, W).
            least_score: detections below it are left out.
            overlap: IoU from which on the weaker of two boxes of a category is left out.
            most: detections of an image.
        """
        maps = self(images)
        each = [Maps(*(part[i] for part in maps)) for i in range(len(images))]
        return [found(one, self.head.stride, images.shape[-2:], least_score, overlap, most) for one in each]


def found(
    maps: Maps, stride: int, size: Sequence[int], least_score: float = 0.05, overlap: float = 0.6, most: int = 100
) -> Found:
    """Detections of one image (height, width) from its ``Maps`` without the batch; see ``Detector.detect``.

    Raises:
        ValueError: the maps are not finite.
    """
    rows, columns = maps.classes.shape[-2:]
    scores = (maps.classes.float().sigmoid() * maps.centre.float().sigmoid()).sqrt().flatten(1)  # (K, h * w)
    if not bool(torch.isfinite(scores).all() & torch.isfinite(maps.distances).all()):
        raise ValueError("the model gives NaN or infinite values: check weights and dtype")
    best, index = scores.flatten().topk(min(CANDIDATES, scores.numel()))
    index = index[best > least_score]
    labels, places = index // (rows * columns), index % (rows * columns)
    points = centres(rows, columns, stride, scores)[places]
    boxes = boxes_around(points, maps.distances.float().flatten(1).t()[places])
    limits = boxes.new_tensor((size[1], size[0], size[1], size[0]))
    boxes = boxes.clamp_min(0).minimum(limits)
    kept = batched_nms(boxes, best[: len(index)], labels, overlap)[:most]
    return Found(boxes[kept], best[kept], labels[kept])


class ViTDet(Detector):
    """A plain ViT, its last map upsampled to stride 8, FCOS's head.

    Args:
        num_classes: K.
        img_size: (height, width) that the position table is for, multiples of 16.
        width, depth, heads, mlp_ratio: of the encoder. features: channels of the head.
    """

    def __init__(
        self, num_classes: int = 3, img_size: Sequence[int] = (240, 320), width: int = 192, depth: int = 12,
        heads: int = 3, features: int = 96, patch: int = PATCH, drop_path: float = 0.0, mlp_ratio: float = 4.0,
    ) -> None:  # fmt: skip
        super().__init__(num_classes, features, patch, img_size)
        grid = (img_size[0] // patch, img_size[1] // patch)
        self.encoder = Encoder(grid, width, depth, heads, drop_path, patch, mlp_ratio)
        del self.encoder.head  # a classifier that official files of Segmenter hold
        self.up = nn.ConvTranspose2d(width, features, patch // STRIDE, stride=patch // STRIDE)
        self.norm = nn.GroupNorm(8, features)
        self.encoder.apply(initialise)
        for table in (self.encoder.cls_token, self.encoder.pos_embed):
            trunc_normal_(table, std=0.02)

    def grid(self, size: Sequence[int]) -> tuple[int, int]:
        """Rows and columns of the patches of images of ``size`` (height, width)."""
        return -(-size[0] // self.divisor), -(-size[1] // self.divisor)

    def features(self, images: Tensor) -> Tensor:
        """See ``Detector.features``."""
        tokens = self.encoder(images)[:, 1:]
        return F.relu(self.norm(self.up(as_map(tokens, self.grid(images.shape[-2:])))))


def vitdet_ti(num_classes: int = 3, **kwargs: Any) -> ViTDet:
    """ViT-Ti/16 for 240x320 images, 6.0 M parameters. ``kwargs``: see ``ViTDet``."""
    return ViTDet(num_classes, **kwargs)


class SwinDet(Detector):
    """A Swin, its maps of stride 8, 16 and 32 summed on the finest one as in a feature pyramid, FCOS's head.

    Args:
        num_classes: K.
        input_size: (height, width) of the images that it is trained on.
        features: channels of the head. swin: arguments of ``SwinTransformer``.
    """

    levels = (1, 2, 3)

    def __init__(
        self, num_classes: int = 3, input_size: Sequence[int] = (240, 320), features: int = 96, **swin: Any
    ) -> None:
        super().__init__(num_classes, features, STRIDE, input_size)
        self.backbone = SwinTransformer(outputs=self.levels, **swin)
        self.lateral = nn.ModuleList(nn.Conv2d(self.backbone.widths[i], features, 1) for i in self.levels)
        self.norm = nn.GroupNorm(8, features)

    def features(self, images: Tensor) -> Tensor:
        """See ``Detector.features``."""
        maps = [layer(x) for layer, x in zip(self.lateral, self.backbone(images), strict=True)]
        total = maps[-1]
        for finer in reversed(maps[:-1]):
            total = finer + F.interpolate(total, finer.shape[-2:], mode="nearest")
        return F.relu(self.norm(total))


def swin_mini(num_classes: int = 3, **kwargs: Any) -> SwinDet:
    """A Swin of width 32 with windows of 7, for 240x320 images. ``kwargs``: see ``SwinDet``."""
    small = {"width": 32, "depths": (2, 2, 6, 2), "heads": (1, 2, 4, 8), "window": 7, "drop_path": 0.05}
    return SwinDet(num_classes, **{**small, **kwargs})
