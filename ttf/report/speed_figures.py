"""Two figures of speed from rows: speed-up against what the multiply-accumulates promise, time against tokens."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

from ttf.report import curves
from ttf.report.figures import save
from ttf.results.costs import BASE, Row, read, text

matplotlib.use("Agg")

FIGURES = {"speed": ("equal", "methods", "tokens"), "speed_tokens": ("tokens",)}  # figure to names of benchmarks
MARKERS = "os^Dv<>pPX*h"
COLOURS = {
    BASE: "tab:red",
    "ours (default)": "black",
    "ours (literal)": "0.45",
    "ToMe": "tab:blue",
    "EViT": "tab:green",
    "DPC-KNN": "tab:orange",
    "PruMerge": "tab:brown",
}
# pale, for methods that are not named above: every other of one map, then the lighter ones of another
PALE = [plt.get_cmap("tab20")(2 * number + 1) for number in range(10)]
PALE += [plt.get_cmap("tab20b")(4 * number + 2) for number in range(5)]
COMPARED = (BASE, "ours (default)", "ToMe", "EViT")
NAMES = {**curves.NAMES, "deit_b": "DeiT-B", "vit_l": "ViT-L/16"}


def method(row: Row) -> str:
    """The method of a row without its settings: "ToMe schedule.r=11" is ToMe."""
    return re.sub(r" \S+=\S+", "", text(row, "method"))


def place(row: Row) -> str:
    """Where and how a row was timed, in words: the title of its panel."""
    return ", ".join(text(row, name) for name in ("device", "dtype", "mode"))


def gather(figure: str, models: Sequence[str] | None, folder: Path) -> list[Row]:
    """The rows that a figure shows, of all files of a folder.

    Args:
        figure: "speed" or "speed_tokens".
        models: only these; None: all.
        folder: ``results/speed``.

    Raises:
        ValueError: there are none.
    """
    rows = [row for file in sorted(folder.glob("*.csv")) for row in read(file)]
    rows = [row for row in rows if text(row, "benchmark") in FIGURES[figure] and text(row, "tokens")]
    found = [row for row in rows if models is None or row["model"] in models]
    if not found:
        raise ValueError(f"no rows for figure={figure} in {folder}: run make speed first")
    return found


def _panels(rows: Sequence[Row], width: float) -> tuple[Any, dict[str, tuple[Axes, list[Row]]]]:
    """A panel for each place, side by side."""
    places = sorted({place(row) for row in rows})
    figure, grid = plt.subplots(1, len(places), figsize=(width * len(places), 4.8), squeeze=False)
    return figure, {
        name: (axes, [row for row in rows if place(row) == name]) for name, axes in zip(places, grid[0], strict=True)
    }


def _colours(rows: Sequence[Row]) -> dict[str, Any]:
    others = sorted({method(row) for row in rows} - set(COLOURS))
    named = {name: colour for name, colour in COLOURS.items() if name in {method(row) for row in rows}}
    return {**named, **{name: PALE[number % len(PALE)] for number, name in enumerate(others)}}


def _limit(axes: Axes, rows: Sequence[Row]) -> None:
    """The line y = x: as much faster as there is less to multiply."""
    ratios = [float(row["mac_ratio"]) for row in rows]
    ends = [0.97 * min(ratios), 1.03 * max(ratios)]
    axes.plot(ends, ends, color="black", linewidth=0.9, linestyle="--", zorder=1)
    axes.annotate("y = x", (ends[1], ends[1]), (-6, 4), textcoords="offset points", fontsize=8, ha="right")


def _key(figure: Any, colours: Mapping[str, Any], markers: Mapping[Any, str], what: str) -> None:
    """The legend beside the figure: methods by colour, and the markers."""
    blank: dict[str, Any] = {"linestyle": "none", "markersize": 7}
    handles = [Line2D([], [], marker="o", color=colour, label=name, **blank) for name, colour in colours.items()]
    handles += [
        Line2D([], [], marker=marker, color="0.3", markerfacecolor="none", label=f"{what}{key}", **blank)
        for key, marker in markers.items()
    ]
    figure.legend(handles=handles, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8.5, frameon=False)


def speed_against_macs(rows: Sequence[Row], path: Path) -> None:
    """Speed-up over the ratio of the multiply-accumulates, a point a row; methods by colour, batch by marker.

    Args:
        rows: of benchmarks; the uncompressed ones are the point (1, 1) and are not drawn.
        path: PNG file to write.
    """
    rows = [row for row in rows if row["method"] != BASE]
    colours, batches = _colours(rows), sorted({int(row["batch"]) for row in rows})
    markers = {batch: MARKERS[number % len(MARKERS)] for number, batch in enumerate(batches)}
    figure, panels = _panels(rows, 6.0)
    for name, (axes, shown) in panels.items():
        _limit(axes, shown)
        for row in sorted(shown, key=lambda row: method(row) in COLOURS):
            style = {"marker": markers[int(row["batch"])], "color": colours[method(row)], "s": 46, "linewidths": 0.6}
            axes.scatter(float(row["mac_ratio"]), float(row["speed_up"]), edgecolors="white", zorder=3, **style)
        models = ", ".join(NAMES.get(model, model) for model in sorted({row["model"] for row in shown}))
        _frame(axes, f"{models}: {name}", "MACs of the uncompressed model / MACs", "speed-up")
    _key(figure, colours, markers, "batch ")
    figure.tight_layout()
    save(figure, path)


def _frame(axes: Axes, title: str, xlabel: str, ylabel: str) -> None:
    axes.set_title(title, fontsize=9)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.3)


def _line(axes: Axes, rows: Sequence[Row], colour: Any, marker: str) -> None:
    """Milliseconds an image of one method on one model over the tokens, with the range of the rounds."""
    ordered = sorted(rows, key=lambda row: int(row["tokens"]))
    low, middle, high = (
        [float(row[f"{name}_ms"]) / int(row["batch"]) for row in ordered] for name in ("low", "median", "high")
    )
    around = [[m - a for m, a in zip(middle, low, strict=True)], [b - m for m, b in zip(middle, high, strict=True)]]
    tokens = [int(row["tokens"]) for row in ordered]
    axes.errorbar(tokens, middle, around, color=colour, marker=marker, markersize=5, capsize=2, elinewidth=0.8)


def time_against_tokens(rows: Sequence[Row], path: Path) -> None:
    """Milliseconds an image over tokens, both logarithmic: uncompressed, ours, ToMe, EViT; models by marker.

    Args:
        rows: of benchmarks.
        path: PNG file to write.
    """
    rows = [row for row in rows if method(row) in COMPARED]
    models = sorted({row["model"] for row in rows})
    markers = {model: MARKERS[number % len(MARKERS)] for number, model in enumerate(models)}
    figure, panels = _panels(rows, 6.4)
    for name, (axes, shown) in panels.items():
        for model, title in ((model, title) for model in models for title in COMPARED):
            of = [row for row in shown if row["model"] == model and method(row) == title]
            if of:
                _line(axes, of, COLOURS[title], markers[model])
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.xaxis.set_major_locator(FixedLocator(sorted({int(row["tokens"]) for row in shown})))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(ScalarFormatter())
        batches = sorted({int(row["batch"]) for row in shown}, reverse=True)
        title = f"{name}, batches of {', '.join(map(str, batches))}"
        _frame(axes, title, "tokens", "ms an image: median, and range of the rounds")
    named = {NAMES.get(model, model): marker for model, marker in markers.items()}
    _key(figure, {name: COLOURS[name] for name in COMPARED}, named, "")
    figure.tight_layout()
    save(figure, path)
