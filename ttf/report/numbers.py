"""Numbers that documents quote: expressions, answered from rows, from files of costs and from logs of trainings.

A term is one of

* ``METRIC ROW``: METRIC is one of the row's task, ``headline`` (that of its task), ``gmacs``, ``share`` (percent of the
  uncompressed GMACs) or ``params_m`` (millions of parameters). ``METRIC+ci`` has the interval, ``lost:METRIC`` what is
  lost to the uncompressed model.
* ``difference:METRIC ROW against ROW``: paired, first minus second, with ``+ci`` its interval; ``p:METRIC ROW against
  ROW``: the p of the metric's test of both.
* ``METRIC@PERCENT EXPERIMENT MODEL``: at so many percent of the uncompressed GMACs, between the rows of the experiment.
* ``range:METRIC ROW``, ``count ROW``, ``spearman:METRIC ROW`` (rho of METRIC and the headline): of all compressed rows
  that fit, ``*`` and ``?`` stand for letters of EXPERIMENT and MODEL.
* ``FILE.csv COLUMN [KEY=VALUE ...]``: of ``results/speed``, or with a folder of ``results/training``; see
  ``ttf.report.files``. ``FOLDER/summary.json KEY.KEY``: of a training.
* a plain number.

ROW is ``EXPERIMENT MODEL [KEY=VALUE ...]``, with overrides that tell rows of one experiment apart; ``images=FROM:TO``
takes that part of its images. Terms are joined by ``over`` (a ratio), ``plus``, ``minus``, ``min`` and ``max``, from
left to right. ``as .2f`` at the end says how the number is written, ``as percent`` in percent, ``as more`` and ``as
less`` by how many percent a ratio is above or below 1 (``as .1f less``: with a decimal), ``as p`` as a p value.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from operator import add, sub, truediv
from pathlib import Path

from ttf.metrics import Estimate, Metric, headline, named
from ttf.metrics.outcomes import select
from ttf.report.files import Files, Number
from ttf.report.ranking import value_at
from ttf.report.tables import p_value
from ttf.results.measured import Measured, uncompressed

JOINED: dict[str, Callable[[float, float], float]] = {
    "over": truediv,
    "plus": add,
    "minus": sub,
    "min": min,
    "max": max,
}
FORMS: dict[str, Callable[[float], float]] = {
    "percent": lambda ratio: 100 * ratio,
    "more": lambda ratio: 100 * (ratio - 1),
    "less": lambda ratio: 100 * (1 - ratio),
}
COSTS = {"gmacs": ".3f", "share": ".0f", "params_m": ".2f"}  # what rows have beside metrics, and how it is written


class Numbers:
    """What stands in documents.

    Args:
        rows: all published rows.
        costs: folder of the rows of costs.
        trainings: folder of what trainings wrote.
    """

    def __init__(self, rows: Sequence[Measured], costs: Path, trainings: Path) -> None:
        self.rows, self.files = rows, Files(costs, trainings)

    def text(self, expression: str) -> str:
        """The text of an expression, see the module's text.

        Raises:
            ValueError: no row, several rows, no such metric, column or key.
        """
        asked, _, form = expression.partition(" as ")
        terms = re.split(rf" ({'|'.join(JOINED)}) ", asked)
        found = self._term(terms[0].split())
        if len(terms) == 1 and not form:
            return found.text
        value = found.value
        for sign, other in zip(terms[1::2], terms[2::2], strict=True):
            value = JOINED[sign](value, self._term(other.split()).value)
        if math.isnan(value):
            raise ValueError(f"{expression!r} is no number")
        return _formed(value, form)

    def _term(self, words: list[str]) -> Number:
        first, *rest = words
        if not rest:
            return Number(float(first), first)
        if first.endswith(".csv"):
            return self.files.of_csv(first, rest[0], rest[1:])
        if first.endswith(".json"):
            return self.files.of_json(first, rest[0])
        kind, _, what = first.rpartition(":")
        if kind in ("difference", "p"):
            place = rest.index("against")
            return _compared(kind, what, self._row(rest[:place]), self._row(rest[place + 1 :]))
        if kind in ("range", "spearman") or first == "count":
            return _of_all(kind or "count", what, [m for m in self._fitting(rest) if m.method is not None])
        if "@" in what:
            metric, _, percent = what.partition("@")
            return self._at(metric, percent, self._fitting(rest))
        return self._of_row(kind, what, self._row(rest))

    def _fitting(self, words: Sequence[str]) -> list[Measured]:
        """The rows that an experiment, a model and overrides mean."""
        name, model, *further = words
        wanted = {one for one in further if not one.startswith("images=")}
        found = {m.row["id"]: m for m in self.rows if fnmatchcase(m.model, model) and _has(m, name, wanted)}
        if not found:
            raise ValueError(f"no row fits {' '.join(words)!r}")
        return list(found.values())

    def _row(self, words: Sequence[str]) -> Measured:
        found = self._fitting(words)
        if len(found) > 1:
            raise ValueError(f"{len(found)} rows fit {' '.join(words)!r}: say which by KEY=VALUE")
        part = next((one.removeprefix("images=") for one in words if one.startswith("images=")), None)
        return found[0] if part is None else _part(found[0], part)

    def _of_row(self, kind: str, what: str, m: Measured) -> Number:
        if what in COSTS:
            share = what == "share"
            value = 100 * m.gmacs / uncompressed(self.rows, m).gmacs if share else float(m.row[what])
            return Number(value, format(value, COSTS[what]))
        metric = _metric(m, what)
        if not kind:
            return _estimated(metric, m.estimate(metric), what)
        if kind != "lost":
            raise ValueError(f"{kind}:{what} is not known")
        if m.method is None:
            return Number(0.0, "")
        lost = metric.lost_between(uncompressed(self.rows, m).images, m.images)
        return _estimated(metric, lost, what)

    def _at(self, what: str, percent: str, rows: Sequence[Measured]) -> Number:
        whole, metric = uncompressed(self.rows, rows[0]).gmacs, _metric(rows[0], what)
        value = value_at(rows, metric, float(percent) / 100 * whole)
        if value is None:
            raise ValueError(f"{len(rows)} rows have nothing at {percent} % of the GMACs")
        return Number(value, metric.text(value))


def _formed(value: float, form: str) -> str:
    *how, last = form.split() or [".2f"]
    if last == "p":
        return p_value(value)
    if last in FORMS:
        return format(FORMS[last](value), how[0] if how else ".0f")
    return format(value, last)


def _has(m: Measured, experiment: str, wanted: set[str]) -> bool:
    named_so = (one for one in m.experiments if fnmatchcase(one["name"], experiment))
    return any(wanted <= {*one["overrides"], f"model={m.model}"} for one in named_so)


def _part(m: Measured, text: str) -> Measured:
    """A row over images FROM:TO of its own; its metrics are computed anew."""
    where = slice(*(int(one) if one else None for one in text.split(":")))
    images = select(m.images, where)
    count = len(range(*where.indices(m.count)))
    return replace(m, row={**m.row, "metrics": {}, "images": count}, load=lambda: images, skip=0)


def _metric(m: Measured, what: str) -> Metric:
    name = what.removesuffix("+ci")
    return headline(m.task) if name == "headline" else named(m.task, name)


def _estimated(metric: Metric, estimate: Estimate | None, what: str) -> Number:
    if estimate is None:
        raise ValueError(f"{metric.name} has no paired difference")
    bracketed = what.endswith("+ci")
    return Number(estimate.value, metric.bracketed(estimate) if bracketed else metric.text(estimate.value))


def _compared(kind: str, what: str, first: Measured, second: Measured) -> Number:
    metric = _metric(first, what)
    if kind == "difference":
        found = metric.difference and metric.difference(first.images, second.images)
        return _estimated(metric, found, what)
    if metric.test is None:
        raise ValueError(f"{metric.name} has no test")
    p = metric.test(first.images, second.images)
    return Number(p, p_value(p))


def _of_all(kind: str, what: str, rows: Sequence[Measured]) -> Number:
    if kind == "count":
        return Number(len(rows), str(len(rows)))
    metric = _metric(rows[0], what)
    values = [m.estimate(metric).value for m in rows]
    if kind == "range":
        return Number(math.nan, f"{metric.text(min(values))} to {metric.text(max(values))}")
    from scipy.stats import spearmanr  # slow to import: few documents ask for it

    rho = float(spearmanr(values, [m.estimate(m.headline).value for m in rows]).statistic)
    return Number(rho, f"{rho:.2f}")
