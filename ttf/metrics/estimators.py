"""Estimators that several tasks share: functions of an outcome's name."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ttf.metrics import intervals, paired
from ttf.metrics.metric import Estimate, ImageOutcomes

Estimator = Callable[[ImageOutcomes], Estimate]
Difference = Callable[[ImageOutcomes, ImageOutcomes], Estimate]
Test = Callable[[ImageOutcomes, ImageOutcomes], float]


def share(name: str) -> Estimator:
    """Percent of the images for which an outcome (n,) bool is true, with Wilson's interval."""

    def estimate(outcomes: ImageOutcomes) -> Estimate:
        hits = outcomes[name]
        low, high = intervals.proportion(int(hits.sum()), len(hits))
        return Estimate(100 * hits.double().mean().item(), 100 * low, 100 * high)

    return estimate


def average(name: str, factor: float = 1) -> Estimator:
    """Mean of an outcome (n,), times ``factor``, with a normal interval."""

    def estimate(outcomes: ImageOutcomes) -> Estimate:
        values = factor * outcomes[name].double()
        return Estimate(values.mean().item(), *intervals.mean(values))

    return estimate


def check_pair(a: Tensor, b: Tensor) -> None:
    """Raise ``ValueError`` where two outcomes (n, ...) are of different numbers of images."""
    if len(a) != len(b):
        raise ValueError(f"rows over {len(a)} and {len(b)} images cannot be paired: evaluate the same set")


def mean_difference(name: str, factor: float = 1) -> Difference:
    """Mean of the paired differences of an outcome (n,), first minus second, with a normal interval."""

    def difference(a: ImageOutcomes, b: ImageOutcomes) -> Estimate:
        check_pair(a[name], b[name])
        values = factor * (a[name].double() - b[name].double())
        return Estimate(values.mean().item(), *intervals.mean(values))

    return difference


def mcnemar(name: str) -> Test:
    """McNemar's exact test of an outcome (n,) bool."""

    def test(a: ImageOutcomes, b: ImageOutcomes) -> float:
        check_pair(a[name], b[name])
        return paired.mcnemar(a[name], b[name])

    return test


def signed_rank(name: str) -> Test:
    """Wilcoxon's signed-rank test of an outcome (n,)."""

    def test(a: ImageOutcomes, b: ImageOutcomes) -> float:
        check_pair(a[name], b[name])
        return paired.signed_rank(a[name], b[name])

    return test
