"""Figures of speed from rows: the efficiency of every method and batch size, over the number of tokens, on a GPU.

Efficiency is the speed-up over the ratio of the multiply-accumulates: 1 is as fast as the arithmetic promises.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, NullLocator

from ttf.report.figures import save
from ttf.results.costs import BASE, Row, read, text

matplotlib.use("Agg")

Rows = Sequence[Row]
METHODS, BATCHES, TOKENS, FITTED = "methods", "equal", "tokens", "prune_and_merge"
ON_GPU = ("deit_s", "vit_b", "vit_l", "vit_l_tome", "vit_h", "vit_h_default", "few_images")
FORMS = ("deit_s_conv", "deit_s_contiguous", "vit_b_conv", "vit_b_contiguous")  # of the patch embedding
GPU_BATCHES, GPU_TOKENS = "gpu_batches", "gpu_tokens"
FIGURES = {  # figure to names of benchmarks
    "speed": (METHODS, BATCHES, FITTED),
    "speed_tokens": (TOKENS,),
    "speed_gpu": (*ON_GPU, *FORMS, GPU_BATCHES, GPU_TOKENS),
}
EFFICIENCY = "efficiency: speed-up / MAC ratio"
# Of the methods that are followed over batches and tokens: marker, fill and line tell them apart without colour.
LOOKS: dict[str, dict[str, Any]] = {
    "ours (default)": {"color": "black", "marker": "o", "linestyle": "-"},
    "EViT": {"color": "#009E73", "marker": "<", "linestyle": "-.", "markerfacecolor": "white"},
    "ToMe": {"color": "#0072B2", "marker": "h", "linestyle": "--"},
}
NAMES = {
    "deit_ti": "DeiT-Ti",
    "deit_s": "DeiT-S",
    "deit_b": "DeiT-B",
    "vit_l": "ViT-L/16",
    "mae_vit_h": "ViT-H/14",
}


class Place(NamedTuple):
    """What the rows of a panel share."""

    model: str
    where: str


def method(row: Row) -> str:
    """The method of a row without its settings: "ToMe schedule.r=11" is ToMe."""
    return re.sub(r" \S+=\S+", "", text(row, "method"))


def _where(row: Row) -> str:
    return ", ".join(text(row, name) for name in ("device", "dtype", "mode"))


def gather(figure: str, models: Sequence[str] | None, folder: Path) -> list[Row]:
    """The rows that a figure shows, of all files of a folder.

    Args:
        figure: a key of ``FIGURES``.
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


def _range(row: Row) -> tuple[float, float]:
    """The efficiency of a row with the slowest and with the fastest of its rounds in place of the median."""
    value, median = float(row["efficiency"]), float(row["median_ms"])
    return value * median / float(row["high_ms"]), value * median / float(row["low_ms"])


def _around(rows: Rows) -> list[list[float]]:
    """Lengths of the bars below and above each point."""
    values, ends = [float(row["efficiency"]) for row in rows], [_range(row) for row in rows]
    below = [max(value - low, 0.0) for value, (low, _) in zip(values, ends, strict=True)]
    return [below, [max(high - value, 0.0) for value, (_, high) in zip(values, ends, strict=True)]]


def _batch(row: Row) -> int:
    return int(row["batch"])


def _of_methods(rows: Rows) -> list[Row]:
    """One row a method at the batch of the benchmark of all methods, the best last; fitted methods have their own."""
    timed = [row for row in rows if text(row, "benchmark") == METHODS]
    batch = max(map(_batch, timed or rows))
    fitted = [row for row in rows if text(row, "benchmark") == FITTED and text(row, "fitted_on")]
    chosen = [row for row in [*timed, *fitted] if _batch(row) == batch and row["method"] != BASE]
    return sorted(chosen, key=lambda row: float(row["efficiency"]))


def _methods_panel(axes: Axes, rows: Rows, name: Callable[[Row], str] = method) -> None:
    """A line a row: its efficiency, the range of its rounds, and what speed-up stands against what MAC ratio."""
    for line, row in enumerate(rows):
        ours = method(row).startswith("ours")
        style: dict[str, Any] = {"marker": "o", "color": "black", "markerfacecolor": "black" if ours else "white"}
        around = [[value] for (value,) in _around([row])]
        axes.errorbar(float(row["efficiency"]), line, xerr=around, capsize=2, elinewidth=0.8, markersize=6, **style)
        ratio = f"{float(row['speed_up']):.2f}x / {float(row['mac_ratio']):.2f}x"
        axes.annotate(ratio, (1.0, line), (6, 0), ("axes fraction", "data"), "offset points", fontsize=8, va="center")
    axes.set_yticks(range(len(rows)), [name(row) for row in rows], fontsize=8.5)
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.axvline(1.0, color="black", linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    axes.set_xlabel(f"{EFFICIENCY} (the two at the right; bars: slowest to fastest round)")
    axes.grid(axis="x", alpha=0.3)


def _line(axes: Axes, places: Sequence[float], rows: Rows, label: str, look: Mapping[str, Any]) -> None:
    values = [float(row["efficiency"]) for row in rows]
    style = {"markersize": 6.5, "linewidth": 1.3, "capsize": 2, "elinewidth": 0.7, **look}
    axes.errorbar(places, values, _around(rows), label=label, **style)


def _curves(axes: Axes, rows: Rows, by: str, shift: float) -> None:
    """A line a method over a column, side by side where points would cover each other."""
    for number, (name, look) in enumerate(LOOKS.items()):
        own = sorted((row for row in rows if method(row) == name), key=lambda row: int(row[by]))
        places = [int(row[by]) * (1 + shift * (number - 1)) for row in own]
        if own:
            alone = {"linestyle": "none"} if len(own) == 1 else {}
            _line(axes, places, own, name, {**look, **alone})


def _frame(axes: Axes, ticks: Mapping[int, str], xlabel: str) -> None:
    """A logarithmic axis with a tick a measured value, and the line at 1."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(list(ticks)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels(list(ticks.values()), fontsize=8.5)
    axes.axhline(1.0, color="black", linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(f"{EFFICIENCY}\n(bars: slowest to fastest round)")
    axes.grid(alpha=0.3)


def _batches_panel(axes: Axes, rows: Rows) -> None:
    _curves(axes, rows, "batch", 0.04)
    _frame(axes, {batch: str(batch) for batch in sorted({_batch(row) for row in rows})}, "batch size, images")
    axes.legend(loc="lower right", fontsize=8.5, frameon=False)


def _name_of(row: Row) -> str:
    model = text(row, "model")
    return NAMES.get(model, model)


def _by_place(rows: Rows) -> dict[Place, list[Row]]:
    found: dict[Place, list[Row]] = {}
    for row in rows:
        found.setdefault(Place(_name_of(row), _where(row)), []).append(row)
    return found


def efficiency_of_methods(rows: Rows, path: Path) -> None:
    """Efficiency of every method at one batch size, and of ours, ToMe and EViT over batch sizes at equal GMACs.

    Args:
        rows: of benchmarks; a pair of panels each model and device.
        path: PNG file to write.
    """
    places = _by_place(rows)
    lines = max(len(_of_methods(own)) for own in places.values())
    size = (13.0, (1.6 + max(0.26 * lines, 2.4)) * len(places))
    figure, grid = plt.subplots(
        len(places), 2, figsize=size, squeeze=False, width_ratios=(1.25, 1), layout=ConstrainedLayoutEngine(wspace=0.06)
    )
    for (model, where), (left, right) in zip(places, grid, strict=True):
        own = places[Place(model, where)]
        shown, over = _of_methods(own), [row for row in own if text(row, "benchmark") == BATCHES]
        _methods_panel(left, shown) if shown else left.set_axis_off()
        _batches_panel(right, over) if over else right.set_axis_off()
        batch = f", batch {shown[0]['batch']}" if shown else ""
        left.set_title(f"{model}{batch}: {where}", fontsize=9.5)
        right.set_title(f"{model}, equal GMACs" if over else "", fontsize=9.5)
    save(figure, path)


def _annotate(axes: Axes, model: str, rows: Rows) -> None:
    """The model's name above the bars of its longest sequence."""
    tokens = max(int(row["tokens"]) for row in rows)
    top = max(_range(row)[1] for row in rows if int(row["tokens"]) == tokens)
    axes.annotate(model, (tokens, top), (0, 5), textcoords="offset points", fontsize=9, ha="center")


def efficiency_over_tokens(rows: Rows, path: Path) -> None:
    """Efficiency of ours, EViT and ToMe at equal GMACs over the number of tokens; a model of one size has no line.

    Args:
        rows: of benchmarks; a panel each device.
        path: PNG file to write.
    """
    wheres = list(dict.fromkeys(map(_where, rows)))
    size = (8.0 * len(wheres), 4.8)
    figure, grid = plt.subplots(1, len(wheres), figsize=size, squeeze=False, layout="constrained")
    for where, axes in zip(wheres, grid[0], strict=True):
        shown = [row for row in rows if _where(row) == where and method(row) in LOOKS]
        models = _by_place(shown)
        for model, _ in models:
            own = models[Place(model, where)]
            _curves(axes, own, "tokens", 0.02)
            _annotate(axes, model, own)
        batches = {int(row["tokens"]): _batch(row) for row in sorted(shown, key=lambda row: int(row["tokens"]))}
        ticks = {tokens: f"{tokens}\nbatch {batch}" for tokens, batch in batches.items()}
        _frame(axes, ticks, "tokens (patches and class token)")
        axes.set_title(f"{', '.join(model for model, _ in models)}, equal GMACs: {where}", fontsize=10)
    handles, labels = grid[0][0].get_legend_handles_labels()
    kinds = {label: handles[labels.index(label)] for label in labels}  # the same for every model
    figure.legend(kinds.values(), kinds, loc="outside lower center", ncols=len(kinds), fontsize=9, frameon=False)
    save(figure, path)


def _form(row: Row) -> str:
    """A row of a GPU in words: the model, its batch, how patches are embedded, the method."""
    embedding = "" if text(row, "patches") == "linear" else f" {text(row, 'layout') or 'contiguous'} convolution,"
    return f"{_name_of(row)}, batch {row['batch']},{embedding} {method(row)}"


def _lines_of_gpu(rows: Rows) -> list[Row]:
    """The rows of the left panel, top to bottom as benchmarks are listed, the most efficient method first."""
    order = {name: number for number, name in enumerate((*ON_GPU, *FORMS))}
    shown = [row for row in rows if text(row, "benchmark") in order and row["method"] != BASE]
    return sorted(shown, key=lambda row: (-order[row["benchmark"]], _batch(row), float(row["efficiency"])))


def efficiency_on_gpu(rows: Rows, path: Path) -> None:
    """Efficiency of models on one card, and of DeiT-S over batch sizes and tokens at equal GMACs.

    Args:
        rows: of the benchmarks of ``configs/tables/speed_gpu.yaml``; a line of panels each device.
        path: PNG file to write.
    """
    devices = list(dict.fromkeys(text(row, "device") for row in rows))
    own = {device: [row for row in rows if text(row, "device") == device] for device in devices}
    lines = max(len(_lines_of_gpu(some)) for some in own.values())
    figure, grid = plt.subplots(
        len(devices),
        3,
        figsize=(17.0, (1.6 + max(0.26 * lines, 2.8)) * len(devices)),
        squeeze=False,
        width_ratios=(1.2, 1, 1),
        layout=ConstrainedLayoutEngine(wspace=0.06),
    )
    for (device, some), panels in zip(own.items(), grid, strict=True):
        left, modes = _lines_of_gpu(some), sorted({text(row, "mode") for row in _lines_of_gpu(some)})
        _methods_panel(panels[0], left, _form) if left else panels[0].set_axis_off()
        panels[0].set_title(f"{device}, {', '.join(modes)}", fontsize=9.5)
        for axes, name, by in ((panels[1], GPU_BATCHES, "batch"), (panels[2], GPU_TOKENS, "tokens")):
            _over(axes, [row for row in some if text(row, "benchmark") == name], by)
    save(figure, path)


def _over(axes: Axes, rows: Rows, by: str) -> None:
    """Efficiency over batch sizes or tokens, of one model on one card."""
    if not rows:
        axes.set_axis_off()
        return
    _curves(axes, rows, by, 0.04)
    ticks = sorted({int(row[by]) for row in rows})
    _frame(axes, {tick: str(tick) for tick in ticks}, {"batch": "batch size, images"}.get(by, by))
    axes.set_title(f"{_name_of(rows[0])}, equal GMACs: {text(rows[0], 'mode')}, {text(rows[0], 'dtype')}", fontsize=9.5)
    axes.legend(loc="lower right", fontsize=8.5, frameon=False)
