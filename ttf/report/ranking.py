"""Who is first at which budget: the curves of Fig. 4a read off at equal multiply-accumulates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ttf.report.curves import NAMES, Curves, models
from ttf.report.tables import Cells, small
from ttf.results.measured import Measured

BUDGETS = range(40, 85, 5)  # percent of the uncompressed multiply-accumulates
SLACK = 1.025  # a curve that begins this little above a budget counts there with its first row


def kl_at(rows: Sequence[Measured], gmacs: float) -> float | None:
    """KL of a method at a budget, log-linear between its two neighbouring rows; None outside of its rows."""
    points = sorted((m.gmacs, m.value("kl")) for m in rows)
    if len(points) < 2 or not points[0][0] <= gmacs * SLACK or gmacs > points[-1][0]:
        return None
    places, kl = zip(*points, strict=True)
    return float(np.exp(np.interp(gmacs, places, np.log(kl))))


def order(rows: Mapping[str, Sequence[Measured]], gmacs: float) -> list[tuple[float, str]]:
    """(KL, title) of the methods that have rows around a budget, the lowest KL first."""
    found = ((kl_at(measured, gmacs), title) for title, measured in rows.items())
    return sorted((kl, title) for kl, title in found if kl is not None)


def ranking(curves: Curves, base: Mapping[str, Measured], shown: int = 4) -> Cells:
    """The methods with the lowest KL at every budget, header first."""
    cells = [["model", "% of MACs", "GMACs", "lowest KL", *["then"] * (shown - 1)]]
    for model in models(curves):
        rows = {title: [m for m in measured if m.model == model] for title, measured in curves.items()}
        for percent in BUDGETS:
            gmacs = percent / 100 * base[model].gmacs
            best = [f"{title} {small(kl)}" for kl, title in order(rows, gmacs)[:shown]]
            cells.append([NAMES.get(model, model), str(percent), f"{gmacs:.3f}", *best, *[""] * (shown - len(best))])
    return cells
