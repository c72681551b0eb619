"""Figures of budgets: metrics against GMACs with 95 % bands, and one metric against another."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from ttf.metrics import Estimate, Metric, named, of_task
from ttf.report import styles
from ttf.report.budgets import Curves
from ttf.report.figures import save
from ttf.results.measured import Measured

matplotlib.use("Agg")

PUBLISHED_NAMES = {"ours": "ours (literal)"}  # whose look the published points have
Styles = Mapping[str, dict[str, Any]]


def drawn(task: str) -> list[Metric]:
    """The metrics of a task that figures show, the headline first."""
    return sorted((m for m in of_task(task) if m.headline or m.in_figures), key=lambda m: not m.headline)


def _interval(m: Measured, base: Measured, metric: Metric) -> Estimate:
    """A value with its band: that of the loss where it is paired, since how hard the images are is the same for all."""
    lost = metric.lost_between(base.images, m.images)
    if lost is None:
        return m.estimate(metric)
    value, sign = base.estimate(metric).value, 1 if metric.higher_is_better else -1
    low, high = sorted((value - sign * lost.high, value - sign * lost.low))
    return Estimate(m.estimate(metric).value, low, high)


def _curve(
    axes: Axes, rows: Sequence[Measured], base: Measured, metric: Metric, style: dict[str, Any], across: str | None
) -> None:
    found = [_interval(m, base, metric) for m in rows]
    costs = [m.value(across) if across else m.gmacs for m in rows]
    axes.plot(costs, [e.value for e in found], **style)
    low = [max(e.low, 0.5 * e.value) if metric.log else e.low for e in found]  # a logarithm has no bottom
    look = {"color": style["color"], "linewidth": 0, "zorder": 1}
    axes.fill_between(costs, low, [e.high for e in found], alpha=0.16, **look)


def _published(axes: Axes, curves: Curves, metric: Metric, looks: Styles) -> None:
    for name in dict.fromkeys(line["method"] for line in curves.published):
        drawable = (line for line in curves.published if {"gmacs", metric.name} <= line.keys())
        lines = [line for line in drawable if line["method"] == name]
        if not lines:
            continue
        style = {**looks[PUBLISHED_NAMES.get(name, name)], "linestyle": "none", "markerfacecolor": "none"}
        points = [[float(line[key]) for line in lines] for key in ("gmacs", metric.name)]
        axes.plot(*points, **{**style, "label": f"{name}, published"})


def _counts(axes: Axes, curves: Curves, looks: Styles) -> None:
    """Ticks at the lower edge: what settings cost that were not run."""
    for name in dict.fromkeys(row["title"] for row in curves.counted):
        costs = [float(row["gmacs"]) for row in curves.counted if row["title"] == name]
        style: dict[str, Any] = {"color": looks[name]["color"], "linestyle": "none", "marker": "|", "markersize": 9}
        axes.plot(costs, [0.02] * len(costs), transform=axes.get_xaxis_transform(), label=f"{name}, counted", **style)


def _frame(axes: Axes, curves: Curves, across: str | None = None) -> None:
    base = curves.base
    axes.set_xlabel(named(curves.task, across).axis if across else "GMACs per image")
    axes.grid(alpha=0.3)
    images = f", {base.count} images of {base.data_set}" if base is not None else ""
    axes.set_title(f"{styles.NAMES.get(curves.model, curves.model)}{images}", fontsize=10)


def _share_axis(axes: Axes, whole: float) -> None:
    """A second axis on top: percent of the uncompressed multiply-accumulates."""
    scale = 100 / whole
    there: Callable[[Any], Any] = lambda gmacs: gmacs * scale  # noqa: E731
    back: Callable[[Any], Any] = lambda share: share / scale  # noqa: E731
    top = axes.secondary_xaxis("top", functions=(there, back))
    top.set_xlabel("% of the uncompressed GMACs", fontsize=8.5)
    top.tick_params(labelsize=8.5)


def _panel(
    axes: Axes,
    curves: Curves,
    metric: Metric,
    titles: Sequence[str],
    looks: Styles,
    depth: float | None,
    across: str | None,
) -> None:
    base = curves.base
    if base is not None:
        for title in titles:
            if title in curves.methods:
                _curve(axes, curves.methods[title], base, metric, {**looks[title], "label": title}, across)
    _frame(axes, curves, across)
    banded = base is not None and metric.difference is not None
    axes.set_ylabel(f"{metric.axis} (bands: of the {metric.loss})" if banded else metric.axis)
    if base is not None and metric.headline:
        value, sign = base.estimate(metric).value, 1 if metric.higher_is_better else -1
        axes.axhline(value, color="black", linewidth=0.8, linestyle=(0, (1, 3)))
        axes.text(0.01, value, "uncompressed", transform=axes.get_yaxis_transform(), fontsize=8, va="bottom")
        if depth is not None:
            axes.set_ylim(*sorted((value - sign * depth, value + sign * depth / 9)))
    if metric.log and base is not None:
        axes.set_yscale("log")
    if curves.whole and not curves.published and not across:  # published GMACs have a whole of their own
        _share_axis(axes, curves.whole)


def _legend(figure: Figure, notes: Mapping[str, str]) -> None:
    """One legend for the curves of all panels, each once."""
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    labels = styles.ordered(list(handles))
    words = [f"{label}:\n{notes[label]}" if label in notes else label for label in labels]
    place: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}
    figure.legend([handles[label] for label in labels], words, fontsize=8.5, frameon=False, **place)


def against_gmacs(
    entries: Sequence[Curves],
    path: Path,
    wanted: Sequence[str] = (),
    depth: float | None = None,
    notes: Mapping[str, str] | None = None,
    across: str | None = None,
) -> None:
    """The metrics of a task against GMACs, or the headline one against another metric.

    At most eight curves a panel with 95 % bands, published points, costs as ticks.

    Args:
        entries: one row of panels each; of what was not measured the headline metric alone is drawn.
        path: PNG file to write.
        wanted: titles of the curves; empty: the first eight.
        depth: how far below the uncompressed model the headline metric is drawn; None: all of it.
        notes: words on a title, for the legend.
        across: the name of a metric in place of GMACs; without published points and counts.
    """
    metrics = drawn(entries[0].task)
    metrics = metrics[:1] if across or not any(entry.methods for entry in entries) else metrics
    every = list(dict.fromkeys(title for entry in entries for title in entry.methods))
    shown = [styles.shown(list(entry.methods), wanted) for entry in entries]
    titles = [title for title in every if any(title in some for some in shown)]
    known = [PUBLISHED_NAMES.get(line["method"], line["method"]) for entry in entries for line in entry.published]
    counted = [row["title"] for entry in entries for row in entry.counted]
    looks = styles.styles(list(dict.fromkeys([*titles, *known, *counted])))
    size = (5.8 * len(metrics), 4.7 * len(entries))
    figure, grid = plt.subplots(len(entries), len(metrics), figsize=size, squeeze=False)
    for panels, entry, own in zip(grid, entries, shown, strict=True):
        for axes, metric in zip(panels, metrics, strict=True):
            _panel(axes, entry, metric, own, looks, depth, across)
        if not across:
            _published(panels[0], entry, metrics[0], looks)
            _counts(panels[0], entry, looks)
    _legend(figure, notes or {})
    figure.tight_layout()
    left_out = [title for title in every if title not in titles]
    if left_out:
        words = textwrap.fill(f"In the table alone: {', '.join(left_out)}.", 150)
        figure.text(0.01, 0, words, fontsize=8.5, va="top")
    save(figure, path)


def scatter(entries: Sequence[Curves], metric: str, path: Path) -> None:
    """A metric against the headline one: a point a row of every method, one panel a model.

    Args:
        entries: of one task.
        metric: the name of that on the horizontal axis.
        path: PNG file to write.
    """
    across, main = named(entries[0].task, metric), entries[0].headline
    titles = list(dict.fromkeys(title for entry in entries for title in entry.methods))
    looks = styles.styles(titles)
    figure, grid = plt.subplots(1, len(entries), figsize=(5.2 * len(entries), 4.6), squeeze=False)
    for axes, entry in zip(grid[0], entries, strict=True):
        for title, rows in entry.methods.items():
            points = ([m.value(name) for m in rows] for name in (metric, main.name))
            axes.plot(*points, **{**looks[title], "linestyle": "none", "label": title})
        every = [m for rows in entry.methods.values() for m in rows]
        rho = spearmanr([m.value(metric) for m in every], [m.value(main.name) for m in every]).statistic
        _frame(axes, entry)
        axes.set_xlabel(across.axis)
        axes.set_ylabel(main.axis)
        axes.text(0.97, 0.95, f"Spearman's rho {rho:.2f}", transform=axes.transAxes, ha="right", fontsize=9)
    _legend(figure, {})
    figure.tight_layout()
    save(figure, path)
