"""COCO's twelve numbers: those of the official code, after every change that the reference made."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from tests.golden.dense import Cases, Files
from ttf.data.detection import annotated_boxes
from ttf.metrics.detection import accumulate, gathered, numbers
from ttf.metrics.outcomes import stack
from ttf.tasks.matching import match_boxes

NAMES = {
    "AP": "ap", "AP50": "ap50", "AP75": "ap75", "AP_small": "ap_small", "AP_medium": "ap_medium",
    "AP_large": "ap_large", "AR_1": "ar1", "AR_10": "ar10", "AR_100": "ar100", "AR_small": "ar_small",
    "AR_medium": "ar_medium", "AR_large": "ar_large",
}  # fmt: skip
LIMIT = 1e-9
Json = dict[str, Any]


def _without_crowds(truth: Json, found: list[Json]) -> tuple[Json, list[Json]]:
    return {**truth, "annotations": [a for a in truth["annotations"] if not a["iscrowd"]]}, found


def _area_of_the_box(truth: Json, found: list[Json]) -> tuple[Json, list[Json]]:
    return {**truth, "annotations": [{**a, "area": a["bbox"][2] * a["bbox"][3]} for a in truth["annotations"]]}, found


def _ordinary_crowds(truth: Json, found: list[Json]) -> tuple[Json, list[Json]]:
    return {**truth, "annotations": [{**a, "iscrowd": 0} for a in truth["annotations"]]}, found


def _reversed(truth: Json, found: list[Json]) -> tuple[Json, list[Json]]:
    return truth, found[::-1]


CHANGES: dict[str, Callable[[Json, list[Json]], tuple[Json, list[Json]]]] = {
    "without crowds in the truth": _without_crowds,
    "area taken from the box (wrong)": _area_of_the_box,
    "crowds as ordinary objects (wrong)": _ordinary_crowds,
    "detections in reverse file order": _reversed,
}


def outcomes(truth: Json, found: list[Json]) -> dict[str, torch.Tensor]:
    """Outcomes of detections in COCO's format; images in the order of their ids, as the official code takes them."""
    label = {entry["id"]: number for number, entry in enumerate(truth["categories"])}
    images = []
    for image, boxes in zip(truth["images"], annotated_boxes(truth), strict=True):
        own = [entry for entry in found if entry["image_id"] == image["id"]]
        corners = torch.tensor([entry["bbox"] for entry in own], dtype=torch.float64).reshape(-1, 4)
        scores = torch.tensor([entry["score"] for entry in own], dtype=torch.float64)
        labels = torch.tensor([label[entry["category_id"]] for entry in own], dtype=torch.int64)
        matches = match_boxes(corners, scores, labels, boxes, len(label))
        images.append({**matches, "image": torch.tensor(sorted(i["id"] for i in truth["images"]).index(image["id"]))})
    return stack(images)


def _twelve(truth: Json, found: list[Json], expected: Json) -> None:
    for name, value in numbers(outcomes(truth, found)).items():
        wanted = expected[next(theirs for theirs, ours in NAMES.items() if ours == name)]
        assert (-1.0 if torch.isnan(value) else value.item()) == pytest.approx(wanted, abs=LIMIT), name


def _parts(truth: Json, found: list[Json], expected: Json) -> None:
    """AP of each category and at each threshold."""
    images = outcomes(truth, found)
    precision = accumulate(gathered(images), torch.ones(1, len(truth["images"]), dtype=torch.float64)).precision[0]
    assert precision.nanmean(1).tolist() == pytest.approx(expected["precision_mean_per_iou_threshold"], abs=LIMIT)
    each = [-1.0 if value != value else value for value in precision.nanmean(0).tolist()]
    wanted = [expected["ap_per_category"][str(entry["id"])] for entry in truth["categories"]]
    assert each == pytest.approx(wanted, abs=LIMIT)


def _image_order(truth: Json, found: list[Json], expected: Json) -> None:
    """Images in another order, as a shuffle gives them, change nothing."""
    _twelve({**truth, "images": truth["images"][::-1]}, found, expected["stats"])


def cases(files: Files) -> Cases:
    """The numbers as they are, and after each change."""
    truth, found, expected = (files.json(part) for part in ("annotations", "detections", "expected"))
    yield "as-it-is", partial(_twelve, truth, found, expected["stats"])
    yield "categories-and-thresholds", partial(_parts, truth, found, expected)
    yield "images-in-another-order", partial(_image_order, truth, found, expected)
    for name, stats in expected["variants"].items():
        yield name.replace(" ", "-"), partial(_twelve, *CHANGES[name](truth, found), stats)
