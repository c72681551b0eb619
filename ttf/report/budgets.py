"""The layouts "curves" and "dense": methods over their budgets, with what others have published and what was counted.

Options of the table: ``shown``, titles of the curves to draw (at most eight; all are in the table); ``depth``, how far
below the uncompressed model the headline metric is drawn; ``notes``, words on a title for the legend; ``ranking``, a
metric by which methods are ranked at equal cost; ``scatter``, a figure's name to a metric, drawn against the headline;
``across``, a figure's name to a metric that stands in place of GMACs; ``quoted``, a sentence on the published numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ttf.errors import MissingError
from ttf.metrics import Metric, headline, of_task
from ttf.report import styles
from ttf.report.tables import BUDGETS, Cells, Line, legend, table, task_of
from ttf.results.costs import Row
from ttf.results.measured import Measured, of_experiments, uncompressed

LEGEND = "published: quoted, see the table's file in configs/tables; counted: GMACs from shapes alone, nothing was run."


@dataclass(frozen=True)
class Curves:
    """What there is of one model.

    Attributes:
        model: its name.
        task: its task.
        methods: title of a method to its rows, cheapest first.
        base: the uncompressed row; None: nothing was measured.
        base_title: what the table calls it.
        counted: lines of ``scripts/count.py``.
        published: what the paper and others print: method, setting, gmacs and metrics by name.
    """

    model: str
    task: str
    methods: Mapping[str, Sequence[Measured]] = field(default_factory=dict)
    base: Measured | None = None
    base_title: str = "uncompressed"
    counted: Sequence[Row] = ()
    published: Sequence[Mapping[str, Any]] = ()

    @property
    def whole(self) -> float | None:
        """GMACs of the uncompressed model, measured or else counted; None where it is neither."""
        if self.base is not None:
            return self.base.gmacs
        return next((float(row["gmacs"]) for row in self.counted if not row["ratio"]), None)

    @property
    def headline(self) -> Metric:
        return headline(self.task)

    @property
    def has_points(self) -> bool:
        """Whether a figure against GMACs has a point: a measured row, or a published value with its GMACs."""
        return bool(self.methods) or any({"gmacs", self.headline.name} <= line.keys() for line in self.published)


def gather(
    spec: Any, rows: Sequence[Measured], models: Sequence[str] | None = None, counted: Sequence[Row] = ()
) -> list[Curves]:
    """What there is of a table's experiments, one entry a model.

    Args:
        spec: a ``ttf.experiments.Table``.
        rows: all rows.
        models: only these; None: all that have rows.
        counted: lines of ``scripts/count.py``.

    Raises:
        MissingError: there are no rows of any model, nothing counted and nothing published.
    """
    titles = {row.name: row.title for row in spec.rows if row.title}
    pairs = [(titles[name], m) for name, m in of_experiments(rows, list(titles))]
    published = [row.paper for row in spec.rows if not row.title]
    named = {m.model for _, m in pairs} | {line["model"] for line in (*counted, *published)}
    found = []
    for model in sorted(named if models is None else named & set(models), reverse=True):
        mine = [line for line in counted if line["model"] == model]
        quoted = [line for line in published if line["model"] == model]
        methods = _methods([(title, m) for title, m in pairs if m.model == model and m.method is not None])
        first = next((m for measured in methods.values() for m in measured), None)
        alone = next((pair for pair in pairs if pair[1].model == model and pair[1].method is None), None)
        task = first.task if first else task_of(spec)
        if first is None and alone is not None:  # a model to compare with, which is never compressed
            found.append(Curves(model, alone[1].task, {}, alone[1], alone[0], mine, quoted))
            continue
        base = None if first is None else uncompressed(rows, first)
        found.append(Curves(model, task, methods, base, counted=mine, published=quoted))
    if not found:
        wanted = "any model" if models is None else ", ".join(models)
        raise MissingError(f"no rows of {spec.name} for {wanted}: ttf sweep table={spec.name} measures them")
    return found


def _methods(pairs: Sequence[tuple[str, Measured]]) -> dict[str, list[Measured]]:
    methods: dict[str, list[Measured]] = {}
    for title, m in sorted(pairs, key=lambda pair: pair[1].gmacs):
        methods.setdefault(title, []).append(m)
    return {title: methods[title] for title in styles.ordered(list(methods))}


def _share(gmacs: float, whole: float | None) -> str:
    return f"{100 * gmacs / whole:.1f}" if whole else ""


def _counted(row: Row, whole: float | None, task: str) -> dict[str, str]:
    blocks = "every block" if row["blocks"].count(",") > 10 else row["blocks"].strip("[]") or "default blocks"
    setting = f"{row['ratio']} at {blocks}" if row["ratio"] else ""
    gmacs = float(row["gmacs"])
    cells = {"title": f"{row['title']}, counted", "setting": setting}
    cells |= {m.name: f"{float(row[m.name]):.2f}" for m in of_task(task) if row.get(m.name)}
    return cells | {"gmacs": f"{gmacs:.2f}", "share": _share(gmacs, whole)}


def _published(curves: Curves) -> list[dict[str, str]]:
    metric = curves.headline
    base = next((line for line in curves.published if line["method"] == "uncompressed"), None)
    found = []
    for line in curves.published:
        cells = {"title": f"{line['method']}, published", "setting": str(line.get("setting", ""))}
        cells |= {"headline": str(line.get(metric.name, "")), "gmacs": str(line.get("gmacs", ""))}
        cells |= {m.name: str(line[m.name]) for m in of_task(curves.task) if m.name in line}
        if base is not None and "gmacs" in line:
            cells["share"] = _share(line["gmacs"], base["gmacs"])
        if base is not None and metric.name in line:
            lost = metric.lost(float(base[metric.name]), float(line[metric.name]))
            cells["loss"] = "" if line is base else metric.text(lost)
        found.append(cells)
    return found


def cells(curves: Curves) -> Cells:
    """Cells, header first: measured lines, then counted ones, then published ones."""
    lines = []
    if curves.base is not None:
        lines.append(Line(curves.base_title, curves.base, curves.base))
        lines += [Line(title, m, curves.base) for title, rows in curves.methods.items() for m in rows]
    quoted = [*(_counted(row, curves.whole, curves.task) for row in curves.counted), *_published(curves)]
    return table(lines, BUDGETS, quoted=quoted, task=curves.task)


def sections(entries: Sequence[Curves], quoted: str = "") -> tuple[list[tuple[str, Cells]], str]:
    """Headings with cells, and the legend; ``quoted``: a sentence on the published numbers."""
    words = legend(entries[0].task, BUDGETS)
    more = any(entry.counted or entry.published for entry in entries)
    return [(entry.model, cells(entry)) for entry in entries], f"{words} {LEGEND} {quoted}".rstrip() if more else words
