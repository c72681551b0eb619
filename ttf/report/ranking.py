"""Who is first at which budget: curves read off at equal multiply-accumulates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ttf.metrics import Metric, named
from ttf.report.budgets import Curves
from ttf.report.styles import NAMES
from ttf.report.tables import Cells
from ttf.results.measured import Measured

BUDGETS = range(40, 85, 5)  # percent of the uncompressed multiply-accumulates
SLACK = 1.025  # a curve that begins this little above a budget counts there with its first row


def value_at(rows: Sequence[Measured], metric: Metric, gmacs: float) -> float | None:
    """A metric of a method at a budget, between its two neighbouring rows; None outside of its rows.

    Linear in GMACs, of the logarithm where the metric has a logarithmic axis.
    """
    points = sorted((m.gmacs, m.value(metric.name)) for m in rows)
    if len(points) < 2 or not points[0][0] <= gmacs * SLACK or gmacs > points[-1][0]:
        return None
    places, values = zip(*points, strict=True)
    if metric.log:
        return float(np.exp(np.interp(gmacs, places, np.log(values))))
    return float(np.interp(gmacs, places, values))


def order(rows: Mapping[str, Sequence[Measured]], metric: Metric, gmacs: float) -> list[tuple[float, str]]:
    """(value, title) of the methods that have rows around a budget, the best first."""
    found = ((value_at(measured, metric, gmacs), title) for title, measured in rows.items())
    there = [(value, title) for value, title in found if value is not None]
    return sorted(there, reverse=metric.higher_is_better)


def ranking(entries: Sequence[Curves], metric: str, shown: int = 4) -> Cells:
    """The best methods at every budget, header first.

    Args:
        entries: of one task.
        metric: by its name.
        shown: how many methods.
    """
    chosen = named(entries[0].task, metric)
    best = f"{'highest' if chosen.higher_is_better else 'lowest'} {chosen.label}"
    cells = [["model", "% of MACs", "GMACs", best, *["then"] * (shown - 1)]]
    for entry in entries:
        for percent in BUDGETS:
            gmacs = percent / 100 * (entry.whole or 0)
            first = [f"{title} {chosen.text(value)}" for value, title in order(entry.methods, chosen, gmacs)[:shown]]
            name = NAMES.get(entry.model, entry.model)
            cells.append([name, str(percent), f"{gmacs:.3f}", *first, *[""] * (shown - len(first))])
    return cells
