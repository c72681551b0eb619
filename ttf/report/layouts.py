"""From a table's file and rows to files of markdown and pictures, by the table's layout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ttf.data.files import atomic_write
from ttf.report import Options, ablation, budgets, curves, paper_tables
from ttf.report.ranking import ranking
from ttf.report.tables import Cells, markdown, show
from ttf.results.costs import read
from ttf.results.measured import Measured

Sections = Sequence[tuple[str, Cells]]


def _table(spec: Any, options: Options, sections: Sections, legend: str) -> Path:
    """Headings with cells and the legend as markdown, and on the terminal."""
    if options.show:
        for heading, cells in sections:
            show(cells, heading)
    parts = [f"**{heading}**\n\n{markdown(cells)}" for heading, cells in sections]
    path = options.path("tables", spec.name)
    atomic_write(path, lambda temporary: temporary.write_text("\n".join([*parts, f"{legend}\n"])))
    return path


def _costs(spec: Any, options: Options) -> list[dict[str, Any]]:
    return read(options.results / "speed" / f"{spec.name}.csv")


def _ablation(spec: Any, rows: Sequence[Measured], options: Options) -> list[Path]:
    return [_table(spec, options, *ablation.sections(spec, rows, options.models))]


def _models(spec: Any, rows: Sequence[Measured], options: Options) -> list[Path]:
    costs = [*_costs(spec, options), *read(options.results / "speed" / "gpu.csv")]  # of make speed-gpu
    return [_table(spec, options, *paper_tables.sections(spec, costs, rows, options.missing, options.advice))]


def _budgets(spec: Any, rows: Sequence[Measured], options: Options) -> list[Path]:
    """The figure against GMACs with its table; further figures of the same rows where the table's file has them."""
    entries = budgets.gather(spec, rows, options.models, _costs(spec, options))
    chosen = spec.options
    sections, legend = budgets.sections(entries, chosen.get("quoted", ""))
    if "ranking" in chosen:
        sections = [("Best at equal cost", ranking(entries, chosen["ranking"])), *sections]
    return [_table(spec, options, sections, legend), *_figures(spec, entries, options)]


def _figures(spec: Any, entries: Sequence[budgets.Curves], options: Options) -> list[Path]:
    """Those that have something to draw; of the others a line says so."""
    chosen, written = spec.options, list[Path]()
    look = (chosen.get("shown", ()), chosen.get("depth"), chosen.get("notes", {}))
    pointed, measured = [e for e in entries if e.has_points], [e for e in entries if e.methods]

    def draw(name: str, drawn: Sequence[budgets.Curves], to: Callable[[Path], None]) -> None:
        if not drawn:
            print(f"no figure {name}{options.suffix}: nothing was measured, nor published with its cost")
            return
        written.append(options.path("figures", name))
        to(written[-1])

    draw(spec.name, pointed, lambda path: curves.against_gmacs(pointed, path, *look))
    for name, metric in chosen.get("across", {}).items():
        draw(
            name,
            measured,
            partial(curves.against_gmacs, measured, wanted=look[0], depth=look[1], notes=look[2], across=metric),
        )
    for name, metric in chosen.get("scatter", {}).items():
        draw(name, measured, partial(curves.scatter, measured, metric))
    return written


LAYOUTS: dict[str, Callable[[Any, Sequence[Measured], Options], list[Path]]] = {
    "ablation": _ablation,
    "models": _models,
    "curves": _budgets,
    "dense": _budgets,
}


def render(table: Any, rows: Sequence[Measured], options: Options) -> list[Path]:
    """See ``ttf.report.render``."""
    if table.layout not in LAYOUTS:
        raise ValueError(f"{table.name} has no layout {table.layout!r}: choose one of {', '.join(LAYOUTS)}")
    return LAYOUTS[table.layout](table, rows, options)
