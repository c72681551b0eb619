"""Which detections of an image are right, by COCO's own code, and which the uncompressed detector has, too.

Shapes: D detections, K categories, A = 4 ranges of area, T = 10 thresholds of IoU.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from pycocotools.cocoeval import COCOeval
from torch import Tensor
from torchvision.ops import box_iou

from ttf.data.detection import Boxes
from ttf.metrics.detection import IOUS, MOST
from ttf.models.detector import Found

SURE = 0.3  # least score of a box that is compared with the uncompressed detector's
SAME = 0.5  # least IoU of two boxes that are the same


def _evaluator(truth: Boxes, boxes: Tensor, scores: Tensor, labels: Tensor) -> tuple[Any, list[int]]:
    """pycocotools' evaluation of one image, and its categories."""
    evaluator: Any = COCOeval(iouType="bbox")
    objects = zip(*(part.tolist() for part in (truth.xywh, truth.labels, truth.areas, truth.crowd)), strict=True)
    for number, (box, label, area, crowd) in enumerate(objects, 1):
        entry = {"id": number, "bbox": box, "area": area, "iscrowd": int(crowd), "ignore": int(crowd)}
        evaluator._gts[0, label].append(entry)
    detections = zip(boxes.tolist(), labels.tolist(), scores.tolist(), strict=True)
    for number, (box, label, score) in enumerate(detections, 1):
        evaluator._dts[0, label].append({"id": number, "bbox": box, "area": box[2] * box[3], "score": score})
    there = sorted({label for _, label in (*evaluator._gts, *evaluator._dts)})
    evaluator.params.maxDets = [1, 10, MOST]
    evaluator.ious = {(0, label): evaluator.computeIoU(0, label) for label in there}
    return evaluator, there


def _bits(flags: Any) -> Tensor:
    """Flags (T, D) as bit fields (D,) int16."""
    places = 1 << np.arange(len(IOUS))
    return torch.from_numpy((np.asarray(flags, dtype=bool) * places[:, None]).sum(0).astype(np.int16))


def match(found: Found, truth: Boxes, num_classes: int) -> dict[str, Tensor]:
    """The outcomes of one image that COCO's numbers are made of, see ``ttf.metrics.detection``.

    Args:
        found: detections in pixels of the image. truth: what is labelled. num_classes: K.
    """
    boxes = found.boxes.double()
    sizes = torch.cat((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), dim=1)
    return match_boxes(sizes, found.scores, found.labels, truth, num_classes)


def match_boxes(
    boxes: Tensor, found_scores: Tensor, found_labels: Tensor, truth: Boxes, num_classes: int
) -> dict[str, Tensor]:
    """As ``match``, of boxes (D, 4) as COCO has them: left, top, width, height."""
    evaluator, labels = _evaluator(truth, boxes, found_scores, found_labels)
    ranges = evaluator.params.areaRng
    there = torch.zeros(num_classes, len(ranges), dtype=torch.int32)
    scores, named = [torch.zeros(0, dtype=torch.float64)], [torch.zeros(0, dtype=torch.int16)]
    fields = [torch.zeros(0, 2, len(ranges), dtype=torch.int16)]
    for label in labels:
        each = [evaluator.evaluateImg(0, label, area, MOST) for area in ranges]
        there[label] = torch.tensor([int((one["gtIgnore"] == 0).sum()) for one in each])
        bits = [torch.stack([_bits(one["dtMatches"] > 0), _bits(one["dtIgnore"])]) for one in each]
        fields.append(torch.stack(bits, dim=-1).permute(1, 0, 2))  # (D, 2, A)
        scores.append(torch.tensor(each[0]["dtScores"], dtype=torch.float64))
        named.append(torch.full((len(each[0]["dtScores"]),), label, dtype=torch.int16))
    matched, ignored = torch.cat(fields).unbind(1)
    every = {"scores": torch.cat(scores), "labels": torch.cat(named), "matched": matched, "ignored": ignored}
    return {**every, "truth": there}


def agreement(found: Found, base: Found) -> dict[str, Tensor]:
    """How far two detectors find the same, one image: agreement and quality, float32 scalars in [0, 1].

    Boxes of the same category are paired greedily, the largest IoU first, from ``SAME`` on. agreement: F1 of the pairs.
    quality: the sum of their IoUs over the mean number of boxes. Both are 1 where neither finds anything.
    """
    ours, theirs = (one.scores >= SURE for one in (found, base))
    count = int(ours.sum()) + int(theirs.sum())
    if count == 0:
        return {"agreement": torch.ones(()), "quality": torch.ones(())}
    overlaps = box_iou(found.boxes[ours].float(), base.boxes[theirs].float())
    overlaps = overlaps * (found.labels[ours].unsqueeze(1) == base.labels[theirs].unsqueeze(0))
    pairs, total = 0, 0.0
    while overlaps.numel() and float(overlaps.max()) >= SAME:
        row, column = divmod(int(overlaps.argmax()), overlaps.shape[1])
        pairs, total = pairs + 1, total + float(overlaps[row, column])
        overlaps[row], overlaps[:, column] = 0.0, 0.0
    return {"agreement": torch.tensor(2 * pairs / count), "quality": torch.tensor(2 * total / count)}
