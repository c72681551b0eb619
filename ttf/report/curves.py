"""Fig. 2 and Fig. 4a from rows: accuracy and KL over methods and budgets; markers tell them apart without colour."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from scipy.stats import spearmanr

from ttf.report.figures import save
from ttf.results.measured import Measured

matplotlib.use("Agg")

Curves = Mapping[str, Sequence[Measured]]  # title of a method to its rows

MARKERS = "osD^v<>pPXh*8d1234+x"
LINES = ("-", "--", "-.", ":")
KNOWN = {
    "ToMe": "tab:blue",
    "DiffRate": "tab:red",
    "EViT": "tab:green",
    "DPC-KNN": "tab:orange",
    "ours (literal)": "0.2",
}
HIGHEST_KL = 3.0  # above it no answer is left to compare
OURS: dict[str, Any] = {"color": "black", "linewidth": 2.4, "markersize": 7, "zorder": 5}
NAMES = {"vit_ti_augreg": "ViT-Ti AugReg", "deit_ti": "DeiT-Ti", "deit_s": "DeiT-S", "vit_mini": "vit_mini"}
MARGIN = 0.6  # of the uncompressed top-1: methods that never reach it are named below the figure, not drawn


def models(curves: Curves) -> list[str]:
    """The models that have rows."""
    return sorted({m.model for rows in curves.values() for m in rows}, reverse=True)


def _styles(curves: Curves) -> dict[str, dict[str, Any]]:
    """How each method is drawn, the same in every figure: ours bold, well-known others in colour, the rest faint."""
    styles = {}
    for number, title in enumerate(curves):
        style = {"marker": MARKERS[number % len(MARKERS)], "linestyle": LINES[number % len(LINES)], "label": title}
        known = KNOWN.get(title)
        faint = {"color": "0.55", "linewidth": 0.7, "markersize": 4, "zorder": 2}
        shown = {"color": known, "linewidth": 1.6, "markersize": 6, "zorder": 4} if known else faint
        styles[title] = {**style, **shown, **(OURS if "default" in title else {})}
    return styles


def _of_model(curves: Curves, model: str) -> dict[str, list[Measured]]:
    """Rows of one model by title, cheapest first."""
    return {
        title: sorted((m for m in rows if m.model == model), key=lambda m: m.gmacs) for title, rows in curves.items()
    }


def collapsed(curves: Curves, base: Mapping[str, Measured]) -> list[str]:
    """Methods that on every model stay below a share of the uncompressed top-1 at every budget."""
    return [
        title for title, rows in curves.items()
        if all(m.value("top1") < MARGIN * base[m.model].value("top1") for m in rows)
    ]  # fmt: skip


def _frame(axes: Axes, model: str, ylabel: str, base: Measured) -> None:
    axes.set_xlabel("GMACs per image")
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.3)
    axes.set_title(f"{NAMES.get(model, model)}, {base.row['images']} images", fontsize=10)


def _share_axis(axes: Axes, base: Measured) -> None:
    """A second axis on top: percent of the uncompressed multiply-accumulates."""
    scale = 100 / base.gmacs
    there: Callable[[Any], Any] = lambda gmacs: gmacs * scale  # noqa: E731
    back: Callable[[Any], Any] = lambda share: share / scale  # noqa: E731
    top = axes.secondary_xaxis("top", functions=(there, back))
    top.set_xlabel("% of the uncompressed GMACs", fontsize=8.5)
    top.tick_params(labelsize=8.5)


def _budget(axes: Axes, rows: Mapping[str, Sequence[Measured]], metric: str, styles: Mapping[str, Any]) -> None:
    for title, measured in rows.items():
        if measured:
            axes.plot([m.gmacs for m in measured], [m.value(metric) for m in measured], **styles[title])


def accuracy_against_gmacs(curves: Curves, base: Mapping[str, Measured], path: Path) -> None:
    """Fig. 4a: top-1 and KL against GMACs, one row of panels a model.

    Args:
        curves: title of a method to its rows over budgets and models.
        base: uncompressed row by model.
        path: PNG file to write.
    """
    hidden, styles = collapsed(curves, base), _styles(curves)
    shown = {title: rows for title, rows in curves.items() if title not in hidden}
    figure, grid = plt.subplots(len(models(curves)), 2, figsize=(11.5, 4.7 * len(models(curves))), squeeze=False)
    for (left, right), model in zip(grid, models(curves), strict=True):
        rows = _of_model(shown, model)
        _budget(left, rows, "top1", styles)
        top1 = base[model].value("top1")
        left.axhline(top1, color="black", linewidth=0.8, linestyle=(0, (1, 3)))
        left.annotate("uncompressed", (left.get_xlim()[0], top1), fontsize=8, va="bottom")
        left.set_ylim(top1 - 26, top1 + 3)
        _budget(right, rows, "kl", styles)
        right.set_yscale("log")
        right.set_ylim(top=HIGHEST_KL)
        for panel in (left, right):
            _share_axis(panel, base[model])
        _frame(left, model, "top-1, %", base[model])
        _frame(right, model, "KL(uncompressed || compressed), nats", base[model])
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8.5, frameon=False)
    if hidden:
        words = f"Not drawn, below {MARGIN:.0%} of the uncompressed top-1 everywhere: {', '.join(hidden)}."
        figure.text(0.01, -0.015, words, fontsize=8.5)
    figure.tight_layout()
    save(figure, path)


def error_against_accuracy(curves: Curves, base: Mapping[str, Measured], path: Path) -> None:
    """Fig. 2: relative error of the classifier's input against top-1, a point a row, one panel a model.

    Args: see ``accuracy_against_gmacs``.
    """
    names, styles = models(curves), _styles(curves)
    figure, grid = plt.subplots(1, len(names), figsize=(5.2 * len(names), 4.6), squeeze=False)
    for axes, model in zip(grid[0], names, strict=True):
        rows = _of_model(curves, model)
        for title, measured in rows.items():
            style = {**styles[title], "linestyle": "none"}
            axes.plot([m.value("class_token_error") for m in measured], [m.value("top1") for m in measured], **style)
        every = [m for measured in rows.values() for m in measured]
        rho = spearmanr([m.value("class_token_error") for m in every], [m.value("top1") for m in every]).statistic
        _frame(axes, model, "top-1, %", base[model])
        axes.set_xlabel("class-token error, ||c - c'|| / ||c||")
        axes.text(0.97, 0.95, f"Spearman's rho {rho:.2f}", transform=axes.transAxes, ha="right", fontsize=9)
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8.5, frameon=False)
    figure.tight_layout()
    save(figure, path)
