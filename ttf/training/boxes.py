"""Training detectors: how images and their boxes are varied, FCOS's targets and loss (arXiv 1904.01355), AP.

Targets of an image are rows of left, top, right, bottom in pixels of the network's input and a label, (N, 5); rows of
label -1 fill up the tensor. Shapes: B batch, N boxes, L places, K categories.
"""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss
from torchvision.transforms.v2 import functional as v2

from ttf.data.detection import Boxes, Labelled
from ttf.metrics.detection import MOST, accumulate, gathered
from ttf.models.detector import STRIDE, Maps, boxes_around, centres, found
from ttf.tasks.matching import match
from ttf.training.evaluation import Score

UNUSED = -1
SEEN = 0.3  # share of a box that has to be left of it after a shift
RADIUS = 1.5  # places from the centre of a box that have to find it, in strides


def targets(boxes: Tensor, labels: Tensor, rows: int) -> Tensor:
    """Boxes (N, 4) and labels (N,) as (rows, 5). Raises ``ValueError`` where there are more."""
    if len(boxes) > rows:
        raise ValueError(f"an image has {len(boxes)} boxes: set data.most={len(boxes)} or more")
    out = torch.full((rows, 5), float(UNUSED))
    out[: len(boxes), :4], out[: len(boxes), 4] = boxes.float(), labels.float()
    return out


class Preparation:
    """Images as (3, h, w) of one size, and their boxes as (most, 5): the same for every epoch.

    Args:
        size: (h, w).
        mean, std: per channel, for values in [0, 1].
        most: rows of the targets.
    """

    def __init__(
        self, size: tuple[int, int], mean: tuple[float, ...] = (0.5,) * 3, std: tuple[float, ...] = (0.5,) * 3,
        most: int = 64,
    ) -> None:  # fmt: skip
        self.size, self.mean, self.std, self.most = size, mean, std, most

    def _prepared(self, image: Image.Image, boxes: Boxes) -> tuple[Tensor, Tensor, Tensor]:
        """Pixels, boxes and labels; crowd regions are left out."""
        pixels = v2.resize(v2.pil_to_tensor(image), list(self.size), antialias=False).float() / 255
        factors = torch.tensor((self.size[1] / image.width, self.size[0] / image.height)).repeat(2)
        return pixels, boxes.xyxy[~boxes.crowd].float() * factors, boxes.labels[~boxes.crowd]

    def _finished(self, pixels: Tensor, boxes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return v2.normalize(pixels, list(self.mean), list(self.std)), targets(boxes, labels, self.most)

    def __call__(self, image: Image.Image, boxes: Boxes) -> tuple[Tensor, Tensor]:
        return self._finished(*self._prepared(image, boxes))


class Augmentation(Preparation):
    """Training images: flips, another size, a shift, brightness. What is shifted in is grey (0 after normalising).

    Args:
        size, **fixed: see ``Preparation``.
        scale: of the size, drawn evenly from 1 / scale to scale.
        shift: pixels, both ways.
        brightness: of the factor, 1 - brightness to 1 + brightness.
        upside_down: whether images are turned over, too.
    """

    def __init__(
        self, size: tuple[int, int], scale: float = 1.25, shift: int = 24, brightness: float = 0.2,
        upside_down: bool = True, **fixed: Any,
    ) -> None:  # fmt: skip
        super().__init__(size, **fixed)
        self.scale, self.shift, self.brightness, self.upside_down = scale, shift, brightness, upside_down

    def __call__(self, image: Image.Image, boxes: Boxes) -> tuple[Tensor, Tensor]:
        pixels, corners, labels = self._prepared(image, boxes)
        draws = torch.rand(6).tolist()
        pixels, corners = self._flipped(pixels, corners, draws[0] < 0.5, self.upside_down and draws[1] < 0.5)
        zoom = self.scale ** (2 * draws[2] - 1)
        move = [round(self.shift * (2 * draw - 1)) for draw in draws[3:5]]
        pixels = v2.affine(pixels, 0.0, move, zoom, [0.0, 0.0], v2.InterpolationMode.BILINEAR, list(self.mean))
        middle = torch.tensor((self.size[1], self.size[0])).repeat(2) / 2
        corners, labels = self._inside((corners - middle) * zoom + middle + torch.tensor(move).repeat(2), labels)
        pixels = (pixels * (1 + self.brightness * (2 * draws[5] - 1))).clamp(0, 1)
        return self._finished(pixels, corners, labels)

    def _flipped(self, pixels: Tensor, boxes: Tensor, mirror: bool, turn: bool) -> tuple[Tensor, Tensor]:
        for wanted, axis, length in ((mirror, 0, self.size[1]), (turn, 1, self.size[0])):
            if wanted:
                pixels, boxes = pixels.flip(-1 - axis), boxes.clone()
                boxes[:, [axis, axis + 2]] = length - boxes[:, [axis + 2, axis]]
        return pixels, boxes

    def _inside(self, boxes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """What is left of the boxes in the picture."""
        limits = torch.tensor((self.size[1], self.size[0])).repeat(2)
        cut = boxes.clamp_min(0).minimum(limits)
        seen = (cut[:, 2:] - cut[:, :2]).prod(1) >= SEEN * (boxes[:, 2:] - boxes[:, :2]).prod(1)
        kept = seen & (cut[:, 2:] - cut[:, :2] >= 1).all(1)
        return cut[kept], labels[kept]


# FCOS


def assigned(boxes: Tensor, labels: Tensor, points: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """Which box each place has to find: the smallest of those whose middle is near it.

    Args:
        boxes: (B, N, 4). labels: (B, N), -1 for none. points: (L, 2) centres of the places. stride: between them.

    Returns:
        (B, L) int64 labels, -1 for background, and (B, L, 4) boxes.
    """
    near = points.new_tensor(RADIUS * stride)
    middle = (boxes[..., :2] + boxes[..., 2:]).unsqueeze(1) / 2  # (B, 1, N, 2)
    at = points.view(1, -1, 1, 2)
    inside = (at > boxes[..., :2].unsqueeze(1)) & (at < boxes[..., 2:].unsqueeze(1)) & ((at - middle).abs() < near)
    areas = (boxes[..., 2:] - boxes[..., :2]).prod(-1).unsqueeze(1).expand(-1, len(points), -1)
    areas = areas.masked_fill(~(inside.all(-1) & (labels != UNUSED).unsqueeze(1)), torch.inf)
    smallest, index = areas.min(-1)
    chosen = labels.gather(1, index).masked_fill(smallest == torch.inf, UNUSED)
    return chosen, boxes.gather(1, index.unsqueeze(-1).expand(-1, -1, 4))


def loss(maps: Maps, wanted: Tensor, stride: int) -> Tensor:
    """Focal loss of the categories, generalised IoU of the boxes weighted by centre-ness, cross-entropy of centre-ness.

    Args:
        maps: of a batch. wanted: (B, N, 5) targets. stride: pixels of a place.
    """
    rows, columns = maps.classes.shape[-2:]
    points = centres(rows, columns, stride, maps.distances)
    labels, boxes = assigned(wanted[..., :4], wanted[..., 4].long(), points, stride)
    positive = labels != UNUSED
    classes = maps.classes.float().flatten(2).transpose(1, 2)
    truth = F.one_hot(labels.clamp_min(0), classes.shape[-1]).to(classes.dtype) * positive.unsqueeze(-1)
    count = positive.sum().clamp_min(1)
    total = sigmoid_focal_loss(classes, truth, reduction="sum") / count
    if not bool(positive.any()):
        return total + 0 * (maps.distances.sum() + maps.centre.sum())
    at = points.expand(len(labels), -1, -1)[positive]
    wanted_boxes, distances = boxes[positive], maps.distances.float().flatten(2).transpose(1, 2)[positive]
    sides = torch.cat((at - wanted_boxes[:, :2], wanted_boxes[:, 2:] - at), dim=1)
    across, down = sides[:, 0::2], sides[:, 1::2]
    central = (across.amin(1) / across.amax(1) * down.amin(1) / down.amax(1)).sqrt()
    missed = generalized_box_iou_loss(boxes_around(at, distances), wanted_boxes)
    centre = maps.centre.float().flatten(1)[positive]
    return total + (missed * central).sum() / central.sum() + F.binary_cross_entropy_with_logits(centre, central)


class Detection(nn.Module):
    """FCOS's loss of a ``ttf.models.detector.Detector``.

    Args:
        model: the detector. label_smoothing: 0, the focal loss has none.

    Raises:
        ValueError: label smoothing.
    """

    def __init__(self, model: nn.Module, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if label_smoothing:
            raise ValueError("the focal loss of detectors has no label smoothing: set objective.label_smoothing=0")
        self.model = model

    def forward(self, images: Tensor, wanted: Tensor) -> Tensor:
        """The loss of images (B, 3, H, W) with targets (B, N, 5)."""
        model: Any = self.model
        return loss(model(images), wanted, model.head.stride)


class AveragePrecision(Score):
    """COCO's AP, boxes in pixels of the network's input.

    Outcomes (n, K + 100, 4): K rows with the number of objects of a category, then a row a detection: score, label (-1
    for none), bits of the thresholds at which it is right, and at which it does not count.
    """

    name = "ap"
    batch_size = 8

    def of_batch(self, logits: Any, targets: Tensor) -> Tensor:
        """See ``Score.of_batch``; ``logits`` are ``Maps``."""
        return torch.stack([_outcomes(Maps(*(part[i].cpu() for part in logits)), wanted.cpu())
                            for i, wanted in enumerate(targets)])  # fmt: skip

    def percent(self, outcomes: Tensor) -> float:
        """See ``Score.percent``."""
        truth, rows = outcomes[:, :-MOST, :1], outcomes[:, -MOST:]
        images = {
            "scores": rows[..., 0], "labels": rows[..., 1].long(), "matched": rows[..., 2:3].int(),
            "ignored": rows[..., 3:].int(), "truth": truth, "image": torch.arange(len(outcomes)),
        }  # fmt: skip
        found = accumulate(gathered(images), torch.ones(1, len(outcomes), dtype=torch.float64))
        return 100 * found.precision.nanmean().item()


def _object(row: list[float]) -> Labelled:
    left, top, right, bottom, label = row
    width, height = right - left, bottom - top
    return (left, top, width, height), int(label), width * height, False


def _outcomes(maps: Maps, wanted: Tensor) -> Tensor:
    """What one image contributes to ``AveragePrecision``."""
    kinds, rows, columns = maps.classes.shape
    there = wanted[wanted[:, 4] != UNUSED]
    truth = Boxes.of([_object(row) for row in there.tolist()])
    parts = match(found(maps, STRIDE, (rows * STRIDE, columns * STRIDE)), truth, kinds)
    out = torch.zeros(kinds + MOST, 4)
    out[:kinds, 0], out[kinds:, 1] = parts["truth"][:, 0], UNUSED
    parts_of = (parts["scores"], parts["labels"], parts["matched"][:, 0], parts["ignored"][:, 0])
    filled = torch.stack([column.float() for column in parts_of], dim=1)
    out[kinds : kinds + len(filled)] = filled
    return out
