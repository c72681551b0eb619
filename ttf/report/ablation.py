"""The layout "ablation": a table of one's own rows, a group a model, reading and set of images.

Options of the table: ``paper_base`` what the paper prints of the uncompressed model, by metric; ``order``: a metric,
the best line first, in place of the file's order; ``halves``: rows over part of the images were chosen there, those
over all of them count on the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ttf.errors import MissingError
from ttf.metrics import named
from ttf.report.tables import ABLATION, Cells, Line, grouped, legend, table
from ttf.results.measured import Measured, halves, nearest_tome, of_experiments, reading, uncompressed

Groups = list[tuple[str, list[Line]]]


def _label(spec: Any) -> Callable[[Measured], str]:
    """What a heading says beside the model."""
    if spec.options.get("halves"):
        return lambda m: "confirmed on the other half" if m.skip else "chosen on this half"
    # the paper leaves readings of its equations open: a table that quotes it says which one was measured
    return reading if any(row.paper for row in spec.rows) else lambda _: ""


def lines_by_heading(spec: Any, rows: Sequence[Measured], models: Sequence[str] | None) -> Groups:
    """The lines of a table; every group begins with the uncompressed row.

    Args:
        spec: a ``ttf.experiments.Table``.
        rows: all rows.
        models: only these; None: all that have rows.

    Raises:
        MissingError: there are no rows of these experiments.
        ValueError: there is none of the uncompressed model.
    """
    pairs = [
        (name, m)
        for name, m in of_experiments(rows, [row.name for row in spec.rows])
        if m.method is not None and (models is None or m.model in models)
    ]
    if not pairs:
        raise MissingError(f"no rows of {spec.name}: ttf sweep table={spec.name} measures them")
    pairs = halves(pairs) if spec.options.get("halves") else pairs
    return [(heading, _lines(spec, rows, group)) for heading, group in grouped(pairs, _label(spec)).items()]


def _lines(spec: Any, rows: Sequence[Measured], group: Sequence[tuple[str, Measured]]) -> list[Line]:
    known, quoted = {row.name: row for row in spec.rows}, spec.options.get("paper_base", {})
    lines = [
        Line(known[name].title, m, uncompressed(rows, m), nearest_tome(rows, m), known[name].paper, quoted)
        for name, m in group
    ]
    base, order = lines[0].base, spec.options.get("order")
    if order:
        metric = named(base.task, order)
        lines.sort(key=lambda line: line.measured.value(order), reverse=metric.higher_is_better)
    return [Line("uncompressed", base, base), *lines]


def sections(spec: Any, rows: Sequence[Measured], models: Sequence[str] | None) -> tuple[list[tuple[str, Cells]], str]:
    """Headings with cells, and the legend; arguments as of ``lines_by_heading``."""
    groups = lines_by_heading(spec, rows, models)
    task = groups[0][1][0].measured.task
    quotes = any(line.paper for _, lines in groups for line in lines)
    return [(heading, table(lines)) for heading, lines in groups], legend(task, ABLATION, quotes)
