"""Metrics of semantic segmentation.

Outcomes (``ttf.tasks.segmentation.outcome``): areas (n, 3, K) pixels that are right, of the class, and called so; kl
(n,) nats per pixel; agreement (n,), a share of the pixels. K classes, n images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ttf.metrics.estimators import average, check_pair
from ttf.metrics.metric import Estimate, ImageOutcomes, Metric, declare

RESAMPLES = 1000
ENDS = torch.tensor([0.025, 0.975], dtype=torch.float64)


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
    """Scores of areas (..., 3, K), summed over the images of a set (not averaged)."""
    right, truth, called = pixels.double().unbind(-2)
    iou, accuracy = right / (truth + called - right), right / truth
    return Scores(iou, accuracy, iou.nanmean(-1), accuracy.nanmean(-1), right.sum(-1) / truth.sum(-1))


def resampled(pixels: Tensor, times: int = RESAMPLES, seed: int = 0) -> Scores:
    """Scores of sets drawn from the images with replacement, (times, ...).

    Args:
        pixels: (n, 3, K), areas of each image.
        times: number of sets.
        seed: the same seed and n draw the same images, so that two models can be compared set by set.
    """
    n = len(pixels)
    drawn = torch.randint(n, (times, n), generator=torch.Generator().manual_seed(seed))
    weights = torch.zeros(times, n, dtype=torch.float64).scatter_add_(1, drawn, torch.ones(times, n).double())
    return scores((weights @ pixels.cpu().double().flatten(1)).unflatten(1, pixels.shape[1:]))


def _of_areas(score: str) -> Callable[[ImageOutcomes], Estimate]:
    """A score in percent, its interval from ``resampled``."""

    def estimate(outcomes: ImageOutcomes) -> Estimate:
        value = getattr(scores(outcomes["areas"].sum(0)), score)
        low, high = (100 * getattr(resampled(outcomes["areas"]), score).nanquantile(ENDS)).tolist()
        return Estimate(100 * value.item(), low, high)

    return estimate


def _difference(score: str) -> Callable[[ImageOutcomes, ImageOutcomes], Estimate]:
    """Points of a score, first minus second; its interval from the same draws of images for both."""

    def difference(a: ImageOutcomes, b: ImageOutcomes) -> Estimate:
        check_pair(a["areas"], b["areas"])
        one, other = (100 * getattr(scores(row["areas"].sum(0)), score).item() for row in (a, b))
        sets = [getattr(resampled(row["areas"]), score) for row in (a, b)]
        low, high = (100 * (sets[0] - sets[1]).nanquantile(ENDS)).tolist()
        return Estimate(one - other, low, high)

    return difference


declare(
    "seg",
    [
        Metric(
            "miou",
            "mIoU",
            "%",
            higher_is_better=True,
            estimate=_of_areas("miou"),
            decimals=2,
            meaning="95 % interval from images drawn with replacement, that of drops from the same draws for both",
            difference=_difference("miou"),
            headline=True,
        ),
        Metric(
            "aacc",
            "aAcc",
            "%",
            higher_is_better=True,
            estimate=_of_areas("aacc"),
            decimals=2,
            difference=_difference("aacc"),
            in_tables=False,
        ),
        Metric(
            "macc",
            "mAcc",
            "%",
            higher_is_better=True,
            estimate=_of_areas("macc"),
            decimals=2,
            difference=_difference("macc"),
            in_tables=False,
        ),
        Metric(
            "agreement",
            "agree",
            "%",
            higher_is_better=True,
            estimate=average("agreement", 100),
            decimals=2,
            meaning="pixels with the uncompressed model's class",
        ),
        Metric(
            "kl",
            "KL",
            "nats per pixel",
            higher_is_better=False,
            estimate=average("kl"),
            decimals=4,
            small=True,
            in_figures=True,
            log=True,
            title="KL(uncompressed || compressed)",
            meaning="KL(uncompressed || compressed)",
        ),
    ],
)
