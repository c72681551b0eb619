"""Metrics of object detection: COCO's twelve numbers from matches that are stored image by image.

Outcomes (``ttf.tasks.matching.match``), D detections of an image, best first in each category, A = 4 ranges of area,
T = 10 thresholds of IoU: scores (D,), labels (D,), matched and ignored (D, A) int16 with a bit a threshold, truth
(K, A) how many objects there are to find, image () its place in the data set. Against the uncompressed detector:
agreement and quality, shares. n images, R sets drawn from them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ttf.metrics.estimators import average, check_pair, mean_difference
from ttf.metrics.metric import Estimate, ImageOutcomes, Metric, declare
from ttf.metrics.outcomes import count, pieces

IOUS = tuple(0.5 + 0.05 * i for i in range(10))
AREAS = ("all", "small", "medium", "large")
MOST = 100  # detections of a category in an image
RECALLS = torch.arange(101, dtype=torch.float64) * 0.01  # the very numbers of numpy's linspace, which decide ties
NOTHING = -1.0  # COCO's number where there is nothing to measure
RESAMPLES, MANY, FEW_RESAMPLES = 500, 200_000, 100  # fewer sets are drawn where there are many detections
PART = 100_000  # values that are worked on at a time
ENDS = torch.tensor([0.025, 0.975], dtype=torch.float64)


@dataclass(frozen=True)
class Numbers:
    """One pass over the matches for one range of area, shares in [0, 1], NaN where there is nothing to find.

    Attributes:
        precision: (R, T, K) average precision.
        recall: (R, T, K) of the ``most`` best detections of each image and category.
    """

    precision: Tensor
    recall: Tensor


@dataclass(frozen=True)
class Detections:
    """All detections of n images, in COCO's order: by image, within an image as they were stored.

    Attributes:
        image: (D,) number of the image, scores (D,) float64, labels (D,), rank (D,) in its image and category.
        matched, ignored: (D, A) bits of the thresholds. truth: (n, K, A).
    """

    image: Tensor
    scores: Tensor
    labels: Tensor
    rank: Tensor
    matched: Tensor
    ignored: Tensor
    truth: Tensor


def _ranks(labels: Tensor) -> Tensor:
    """How many detections of the same category come before each one of an image, (D,)."""
    same = labels.unsqueeze(0) == labels.unsqueeze(1)
    return same.tril(-1).sum(1)


def gathered(outcomes: ImageOutcomes) -> Detections:
    """The detections of all images."""
    order = outcomes["image"].argsort(stable=True).tolist() if "image" in outcomes else range(count(outcomes))
    parts = {name: pieces(outcomes, name) for name in ("scores", "labels", "matched", "ignored")}
    lists = {name: [part[i] for i in order] for name, part in parts.items()}
    image = torch.cat([torch.full((len(lists["scores"][place]),), i) for place, i in enumerate(order)])
    joined = {name: torch.cat(part) for name, part in lists.items()}
    ranks = torch.cat([_ranks(part) for part in lists["labels"]])
    return Detections(
        image, joined["scores"].double(), joined["labels"].long(), ranks, joined["matched"].int(),
        joined["ignored"].int(), outcomes["truth"].double(),
    )  # fmt: skip


def _bits(fields: Tensor) -> Tensor:
    """Bit fields (D,) by threshold, (T, D) bool."""
    return (fields.unsqueeze(0) >> torch.arange(len(IOUS)).unsqueeze(1)) & 1 == 1


def accumulate(found: Detections, weights: Tensor, area: int = 0, most: int = MOST) -> Numbers:
    """COCO's accumulation, for weighted images.

    Args:
        found: of n images. weights: (R, n), how often each image counts. area: number in ``AREAS``.
        most: detections that count of each image and category.
    """
    truth = weights @ found.truth[:, :, area]  # (R, K)
    kinds = [_of_category(found, weights, truth[:, k], k, area, most) for k in range(truth.shape[1])]
    precision, recall = (torch.stack(part, dim=-1) for part in zip(*kinds, strict=True))
    return Numbers(precision, recall)


def _of_category(
    found: Detections, weights: Tensor, truth: Tensor, label: int, area: int, most: int
) -> tuple[Tensor, Tensor]:
    """Average precision and recall of one category, (R, T) each; NaN where ``truth`` (R,) is 0."""
    chosen = ((found.labels == label) & (found.rank < most)).nonzero().squeeze(1)
    chosen = chosen[found.scores[chosen].argsort(descending=True, stable=True)]
    counted = ~_bits(found.ignored[chosen, area])
    right = _bits(found.matched[chosen, area]) & counted
    size = max(1, PART // max(1, len(IOUS) * len(chosen)))
    parts = [
        _curves(right, counted & ~right, weights[i : i + size, found.image[chosen]], truth[i : i + size])
        for i in range(0, len(weights), size)
    ]
    precision, recall = (torch.cat(part) for part in zip(*parts, strict=True))
    nothing = (truth == 0).unsqueeze(1)
    return precision.masked_fill(nothing, torch.nan), recall.masked_fill(nothing, torch.nan)


def _curves(right: Tensor, wrong: Tensor, weights: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Average precision and last recall, (R, T) each, of right and wrong detections (T, D), best first, weights (R, D).

    At each of 101 recalls the precision is that of the best later point, 0 beyond the last one.
    """
    if not right.shape[1]:
        zero = truth.new_zeros(len(truth), len(IOUS))
        return zero, zero
    hits = (right * weights.unsqueeze(1)).cumsum(-1)  # (R, T, D)
    misses = (wrong * weights.unsqueeze(1)).cumsum(-1)
    recall = hits / truth.clamp_min(torch.finfo(truth.dtype).tiny).view(-1, 1, 1)
    precision = hits / (hits + misses + torch.finfo(hits.dtype).eps)
    precision = precision.flip(-1).cummax(-1).values.flip(-1)
    at = RECALLS.to(hits).expand(*recall.shape[:2], -1).contiguous()
    index = torch.searchsorted(recall, at)
    beyond = index >= recall.shape[-1]
    values = precision.gather(-1, index.clamp_max(recall.shape[-1] - 1)).masked_fill(beyond, 0.0)
    return values.mean(-1), recall[..., -1]


# the twelve numbers, by name: range of area, detections, and what is read of a pass


def _mean(values: Tensor) -> Tensor:
    """Over thresholds and categories (R, T, K) that have objects, (R,)."""
    return values.flatten(1).nanmean(1)


def _average(numbers: Numbers) -> Tensor:
    return _mean(numbers.precision)


def _recall(numbers: Numbers) -> Tensor:
    return _mean(numbers.recall)


def _at(threshold: int) -> Callable[[Numbers], Tensor]:
    return lambda numbers: _mean(numbers.precision[:, threshold : threshold + 1])


Read = Callable[[Numbers], Tensor]
PASSES: dict[tuple[int, int], dict[str, Read]] = {
    (0, 100): {"ap": _average, "ap50": _at(0), "ap75": _at(5), "ar100": _recall},
    (0, 1): {"ar1": _recall},
    (0, 10): {"ar10": _recall},
    (1, 100): {"ap_small": _average, "ar_small": _recall},
    (2, 100): {"ap_medium": _average, "ar_medium": _recall},
    (3, 100): {"ap_large": _average, "ar_large": _recall},
}


def numbers(outcomes: ImageOutcomes, weights: Tensor | None = None) -> dict[str, Tensor]:
    """COCO's twelve numbers, (R,) each, shares in [0, 1]; NaN where there is nothing to measure.

    Args:
        outcomes: of n images. weights: (R, n), how often each image counts; None: once, R = 1.
    """
    weights = torch.ones(1, count(outcomes), dtype=torch.float64) if weights is None else weights
    found = gathered(outcomes)
    passes = (_read(found, weights, place) for place in PASSES)
    return {name: value for passed in passes for name, value in passed.items()}


def _read(found: Detections, weights: Tensor, place: tuple[int, int]) -> dict[str, Tensor]:
    """The numbers of one pass, by name."""
    passed = accumulate(found, weights, *place)
    return {name: read(passed) for name, read in PASSES[place].items()}


def drawn(n: int, times: int, seed: int = 0) -> Tensor:
    """How often each of n images is in each of ``times`` sets drawn with replacement, (times, n) float64.

    The same seed and n draw the same sets, so that two models can be compared set by set.
    """
    index = torch.randint(n, (times, n), generator=torch.Generator().manual_seed(seed))
    return torch.zeros(times, n, dtype=torch.float64).scatter_add_(1, index, torch.ones(times, n).double())


class _Kept:
    """Outcomes with a hash, so that each pass over them is made once for all its metrics of a row."""

    def __init__(self, outcomes: ImageOutcomes) -> None:
        self.outcomes = outcomes
        digest = hashlib.sha256()
        for name in sorted(outcomes):
            digest.update(name.encode() + outcomes[name].contiguous().numpy().tobytes())
        self.digest = digest.hexdigest()

    def __hash__(self) -> int:
        return hash(self.digest)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Kept) and other.digest == self.digest


@lru_cache(maxsize=64 * len(PASSES))
def _measured(kept: _Kept, place: tuple[int, int]) -> tuple[dict[str, float], dict[str, Tensor]]:
    """The numbers of one pass over a set, and those of sets drawn from it, (R,) each."""
    outcomes, n = kept.outcomes, count(kept.outcomes)
    total, found = sum(len(part) for part in pieces(outcomes, "scores")), gathered(outcomes)
    whole = _read(found, torch.ones(1, n, dtype=torch.float64), place)
    sets = _read(found, drawn(n, FEW_RESAMPLES if total > MANY else RESAMPLES), place)
    return {name: value.item() for name, value in whole.items()}, sets


def _place(name: str) -> tuple[int, int]:
    """The pass that has a number."""
    return next(place for place, reads in PASSES.items() if name in reads)


def _estimate(name: str) -> Callable[[ImageOutcomes], Estimate]:
    """One of the twelve in percent, -1 where there is nothing to measure; its interval from sets of drawn images."""

    def estimate(outcomes: ImageOutcomes) -> Estimate:
        whole, sets = _measured(_Kept(outcomes), _place(name))
        if whole[name] != whole[name]:
            return Estimate(NOTHING, NOTHING, NOTHING)
        low, high = (100 * sets[name].nanquantile(ENDS)).tolist()
        return Estimate(100 * whole[name], low, high)

    return estimate


def _difference(name: str) -> Callable[[ImageOutcomes, ImageOutcomes], Estimate]:
    """Points, first minus second; its interval from the same sets for both."""

    def difference(a: ImageOutcomes, b: ImageOutcomes) -> Estimate:
        check_pair(a["image"], b["image"])
        (one, first), (other, second) = (_measured(_Kept(each), _place(name)) for each in (a, b))
        low, high = (100 * (first[name] - second[name]).nanquantile(ENDS)).tolist()
        return Estimate(100 * (one[name] - other[name]), low, high)

    return difference


LABELS = {
    "ap": "AP", "ap50": "AP50", "ap75": "AP75", "ap_small": "AP small", "ap_medium": "AP medium",
    "ap_large": "AP large", "ar1": "AR1", "ar10": "AR10", "ar100": "AR100", "ar_small": "AR small",
    "ar_medium": "AR medium", "ar_large": "AR large",
}  # fmt: skip
MEANING = {"ap": "COCO's, in percent; intervals from images drawn with replacement, those of drops from the same draws"}


class _Coco(Metric):
    """One of the twelve."""

    def text(self, value: float) -> str:
        """See ``Metric.text``: COCO's -1 is no value."""
        return "" if value == NOTHING else super().text(value)


def _coco(name: str) -> Metric:
    return _Coco(
        name, LABELS[name], "%", higher_is_better=True, estimate=_estimate(name), decimals=2,
        meaning=MEANING.get(name, ""), difference=_difference(name), headline=name == "ap",
        in_tables=name in ("ap", "ap50", "ap75"),
    )  # fmt: skip


declare(
    "det",
    [
        *(_coco(name) for name in LABELS),
        Metric(
            "agreement",
            "agree",
            "%",
            higher_is_better=True,
            estimate=average("agreement", 100),
            decimals=2,
            meaning="boxes that the uncompressed detector has, too (F1 at IoU 0.5, same category, scores from 0.3 on)",
            difference=mean_difference("agreement", 100),
        ),
        Metric(
            "quality",
            "IoU",
            "%",
            higher_is_better=True,
            estimate=average("quality", 100),
            decimals=2,
            in_figures=True,
            title="IoU with uncompressed boxes",
            meaning="mean IoU with the uncompressed detector's boxes, 0 for those without a partner",
            difference=mean_difference("quality", 100),
        ),
    ],
)
