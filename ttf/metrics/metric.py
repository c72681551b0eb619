"""What a metric is, and which metrics a task has."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

ImageOutcomes = Mapping[str, Tensor]  # (n, ...) each, see ``ttf.metrics.outcomes``


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval, in the metric's unit."""

    value: float
    low: float
    high: float

    def plain(self) -> dict[str, Any]:
        """As rows of results keep it; None for what is not a number, such as an interval of one image."""
        value, low, high = (None if math.isnan(one) else one for one in (self.value, self.low, self.high))
        return {"value": value, "ci95": [low, high]}

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Estimate:
        """From what ``plain`` gives."""
        return cls(*(math.nan if one is None else float(one) for one in (plain["value"], *plain["ci95"])))


@dataclass(frozen=True)
class Metric:
    """One metric of a task.

    Attributes:
        name: its key in rows.
        label: its name in tables.
        unit: "%", "nats", ...; "" where it has none.
        higher_is_better: its direction.
        estimate: from the outcomes of n images to the value of the set.
        decimals: how many are shown.
        small: below 0.001 it is shown in powers of ten.
        title: its name on the axis of a figure; "": the label.
        meaning: what a table's legend says of it; "": nothing.
        difference: of two rows, first minus second, on the same images; None: intervals are not paired.
        test: two-sided p that two rows are equal on the same images; None: they are not compared.
        headline: tables and figures of the task are about this one.
        in_tables: tables show it.
        in_figures: figures against GMACs show it beside the headline.
        log: figures show it on a logarithmic axis.
    """

    name: str
    label: str
    unit: str
    higher_is_better: bool
    estimate: Callable[[ImageOutcomes], Estimate]
    decimals: int = 1
    small: bool = False
    title: str = ""
    meaning: str = ""
    difference: Callable[[ImageOutcomes, ImageOutcomes], Estimate] | None = None
    test: Callable[[ImageOutcomes, ImageOutcomes], float] | None = None
    headline: bool = False
    in_tables: bool = True
    in_figures: bool = False
    log: bool = False

    def text(self, value: float) -> str:
        """A value without its unit; "" where there is none, such as of questions not asked."""
        if math.isnan(value):
            return ""
        return f"{value:.0e}" if self.small and value != 0 and abs(value) < 1e-3 else f"{value:.{self.decimals}f}"

    def bracketed(self, estimate: Estimate) -> str:
        """A value with its interval, where it has one, without the unit."""
        value, low, high = map(self.text, (estimate.value, estimate.low, estimate.high))
        return f"{value} [{low}, {high}]" if low and high else value

    @property
    def head(self) -> str:
        """Its column's heading: the label, with a sign of percent where it is in percent."""
        return f"{self.label} %" if self.unit == "%" else self.label

    @property
    def axis(self) -> str:
        """Its axis in a figure, with the unit."""
        return f"{self.title or self.label}, {self.unit}" if self.unit else self.title or self.label

    @property
    def points(self) -> str:
        """What a difference counts: "points of top-1", "nats of KL"."""
        return f"{'points' if self.unit == '%' else self.unit} of {self.label}" if self.unit else self.label

    @property
    def loss(self) -> str:
        """What a change for the worse is called."""
        return "drop" if self.higher_is_better else "rise"

    def lost(self, base: float, value: float) -> float:
        """By how much ``value`` is worse than ``base``."""
        return base - value if self.higher_is_better else value - base

    def lost_between(self, base: ImageOutcomes, ours: ImageOutcomes) -> Estimate | None:
        """By how much ours are worse, on the same images; None where the metric has no paired difference.

        Raises:
            ValueError: the two are not over the same number of images.
        """
        if self.difference is None:
            return None
        return self.difference(base, ours) if self.higher_is_better else self.difference(ours, base)


_DECLARED: dict[str, tuple[Metric, ...]] = {}


def declare(task: str, metrics: Sequence[Metric]) -> None:
    """Make the metrics of a task known, in the order in which they are shown.

    Raises:
        ValueError: the task has metrics already, a name comes twice, or not exactly one is the headline.
    """
    names = [metric.name for metric in metrics]
    if task in _DECLARED:
        raise ValueError(f"the metrics of task {task!r} are declared already")
    if len(set(names)) < len(names):
        raise ValueError(f"a metric of task {task!r} is declared twice: {', '.join(names)}")
    if sum(metric.headline for metric in metrics) != 1:
        raise ValueError(f"exactly one metric of task {task!r} must be the headline")
    _DECLARED[task] = tuple(metrics)


def of_task(task: str) -> tuple[Metric, ...]:
    """The metrics of a task. Raises ``ValueError`` where it has none."""
    if task not in _DECLARED:
        raise ValueError(f"no metrics of a task {task!r}: there are those of {', '.join(sorted(_DECLARED))}")
    return _DECLARED[task]


def headline(task: str) -> Metric:
    """The metric that tables and figures of a task are about."""
    return next(metric for metric in of_task(task) if metric.headline)


def named(task: str, name: str) -> Metric:
    """A metric of a task. Raises ``ValueError`` where the task does not have it."""
    found = {metric.name: metric for metric in of_task(task)}
    if name not in found:
        raise ValueError(f"task {task} has no metric {name!r}: there are {', '.join(found)}")
    return found[name]


def measure(task: str, outcomes: ImageOutcomes) -> dict[str, dict[str, Any]]:
    """The metrics of a task as rows of results keep them: name to value and ci95.

    Those that have no value here are left out.

    Raises:
        ValueError: the headline has none, as where no pixel has a label that counts.
    """
    found = {metric: metric.estimate(outcomes).plain() for metric in of_task(task)}
    lacking = [metric for metric, estimate in found.items() if estimate["value"] is None]
    if any(metric.headline for metric in lacking):
        raise ValueError(f"there is no {headline(task).label} of these images: nothing in them has a label that counts")
    return {metric.name: estimate for metric, estimate in found.items() if metric not in lacking}
