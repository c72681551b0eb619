"""Fig. 4b and 4c from rows: mIoU and KL of a segmentation model against GMACs, with what others have published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from ttf.metrics.segmentation import resampled
from ttf.report.figures import save
from ttf.report.lines import Sources
from ttf.report.tables import Cells, small
from ttf.results.costs import Row
from ttf.results.measured import Measured, of_experiment, printed_lines, read, title, uncompressed

matplotlib.use("Agg")

FIGURES = ("fig4b", "fig4c")
MARKERS = "osD^v<>pP"
COLOURS = {
    "uncompressed": "tab:red",
    "ours (literal)": "tab:purple",
    "ours (literal), back on the masks": "tab:pink",
    "ours (default)": "black",
    "ours (default), back by W transposed": "0.5",
    "Hourglass": "tab:orange",
    "Hourglass, temperature 2": "gold",
    "EViT": "tab:green",
    "ToMe": "tab:blue",
    "ACT": "tab:brown",
}
ORDER = {name: number for number, name in enumerate(COLOURS)}
PUBLISHED_NAMES = {"ours": "ours (literal)"}  # whose colour the published points have
ENDS = torch.tensor([0.025, 0.975], dtype=torch.float64)
LEGEND = (
    "mIoU: 95 % interval from images drawn with replacement; drop: points of mIoU below the uncompressed model, 95 % "
    "interval from the same draws of images for both; agree: pixels with the uncompressed model's class; KL: "
    "KL(uncompressed || compressed), nats per pixel; published: quoted, see results/paper/README.md; counted: GMACs "
    "from shapes alone, nothing was run. Published GMACs leave out the decoder's attention and ToMe's matching"
)


@dataclass(frozen=True)
class Dense:
    """What a figure of one model shows.

    Attributes:
        model: its name.
        curves: title of a method to its rows, cheapest first.
        base: the uncompressed row; None: nothing was measured.
        counted: lines of ``scripts/count.py``.
        published: lines of ``results/paper/FIGURE.csv``.
    """

    model: str
    curves: Mapping[str, Sequence[Measured]]
    base: Measured | None
    counted: Sequence[Row]
    published: Sequence[Mapping[str, str]]

    @property
    def whole(self) -> float | None:
        """GMACs of the uncompressed model, measured or else counted; None where it is neither."""
        if self.base is not None:
            return self.base.gmacs
        return next((float(row["gmacs"]) for row in self.counted if not row["ratio"]), None)


def gather(figure: str, models: Sequence[str] | None, sources: Sources, counted: Sequence[Row]) -> list[Dense]:
    """What there is of the experiments FIGURE/*, one entry a model.

    Args:
        figure: "fig4b" or "fig4c".
        models: only these; None: all that have rows.
        sources: where rows and published lines are.
        counted: lines of ``scripts/count.py``.

    Raises:
        ValueError: there are no rows of any model, nothing counted and nothing published.
    """
    rows = read(sources.runs)
    pairs = [(name, m) for name, m in of_experiment(rows, figure) if models is None or m.model in models]
    printed = printed_lines(sources.quoted, figure)
    named = {m.model for _, m in pairs} | {line["model"] for line in (*counted, *printed)}
    found = []
    for model in sorted(named if models is None else named & set(models)):
        curves: dict[str, list[Measured]] = {}
        for name, m in sorted(pairs, key=lambda pair: pair[1].gmacs):
            if m.model == model and m.method["method"] != "none":
                curves.setdefault(title(sources.experiments, figure, name), []).append(m)
        first = next((m for measured in curves.values() for m in measured), None)
        base = None if first is None else uncompressed(rows, first)
        mine = [line for line in counted if line["model"] == model]
        curves = dict(sorted(curves.items(), key=lambda item: (ORDER.get(item[0], len(ORDER)), item[0])))
        found.append(Dense(model, curves, base, mine, [line for line in printed if line["model"] == model]))
    if not found:
        wanted = "any model" if models is None else ", ".join(models)
        raise ValueError(f"no rows of {figure} for {wanted} in {sources.runs}: run make {figure} first")
    return found


def drop(base: Measured, m: Measured) -> tuple[float, tuple[float, float]]:
    """Points of mIoU lost, and the 95 % interval over images drawn with replacement, the same for both rows."""
    pairs = [resampled(row.images["areas"]).miou for row in (base, m)]
    low, high = (100 * (pairs[0] - pairs[1]).nanquantile(ENDS)).tolist()
    return base.value("miou") - m.value("miou"), (low, high)


def _setting(m: Measured) -> str:
    schedule: dict[str, Any] = m.row["config"].get("schedule", {})
    tokens = m.row["tokens"]
    blocks = ", ".join(str(layer["block"]) for layer in tokens) if tokens else "every block"
    return f"{schedule['ratio']} at {blocks}" if "ratio" in schedule else ""


def _share(gmacs: float, whole: float | None) -> str:
    return f"{100 * gmacs / whole:.1f}" if whole else ""


def _bracketed(value: float, interval: Sequence[float]) -> str:
    return f"{value:.2f} [{interval[0]:.2f}, {interval[1]:.2f}]"


def _measured_line(name: str, m: Measured, base: Measured) -> list[str]:
    lost = "" if m is base else _bracketed(*drop(base, m))
    miou = _bracketed(m.value("miou"), m.interval("miou"))
    setting = "" if m is base else _setting(m)
    moved = [f"{m.value('agreement'):.2f}", small(m.value("kl"))]
    return [name, setting, f"{m.gmacs:.3f}", _share(m.gmacs, base.gmacs), miou, lost, *moved]


def _counted_line(row: Row, whole: float | None) -> list[str]:
    blocks = "every block" if row["blocks"].count(",") > 10 else row["blocks"].strip("[]") or "default blocks"
    setting = f"{row['ratio']} at {blocks}" if row["ratio"] else ""
    gmacs = float(row["gmacs"])
    return [f"{row['title']}, counted", setting, f"{gmacs:.2f}", _share(gmacs, whole), "", "", "", ""]


def table(dense: Dense) -> Cells:
    """Cells, header first: measured lines, then counted ones, then published ones."""
    head = ["", "keep ratio", "GMACs", "% of uncompressed", "mIoU % [95 %]", "drop [95 %]", "agree %", "KL"]
    cells = [head]
    if dense.base is not None:
        cells.append(_measured_line("uncompressed", dense.base, dense.base))
        for name, rows in dense.curves.items():
            cells += [_measured_line(name, m, dense.base) for m in rows]
    cells += [_counted_line(row, dense.whole) for row in dense.counted]
    base = next((line for line in dense.published if line["method"] == "uncompressed"), None)
    for line in dense.published:
        assert base is not None
        share = _share(float(line["gmacs"]), float(base["gmacs"]))
        lost = "" if line is base else f"{float(base['miou']) - float(line['miou']):.2f}"
        cells.append(
            [f"{line['method']}, published", line["setting"], line["gmacs"], share, line["miou"], lost, "", ""]
        )
    return cells


def _style(name: str, number: int) -> dict[str, Any]:
    return {"color": COLOURS.get(name, "0.6"), "marker": MARKERS[number % len(MARKERS)], "markersize": 6}


def _interval(m: Measured, base: Measured, metric: str) -> tuple[float, float]:
    """Ends of the bar: of mIoU that of the drop, since how hard the images are is the same for all methods."""
    if metric != "miou":
        return m.interval(metric)
    _, (low, high) = drop(base, m)
    return base.value(metric) - high, base.value(metric) - low


def _curves(axes: Axes, dense: Dense, metric: str, numbers: Mapping[str, int]) -> None:
    for name, rows in dense.curves.items():
        assert dense.base is not None
        values = torch.tensor([[m.value(metric), *_interval(m, dense.base, metric)] for m in rows]).double()
        around = torch.stack((values[:, 0] - values[:, 1], values[:, 2] - values[:, 0])).clamp_min(0)
        axes.errorbar(
            [m.gmacs for m in rows], values[:, 0].tolist(), around.numpy(), label=name, capsize=2, elinewidth=0.8,
            **_style(name, numbers[name]),
        )  # fmt: skip
    if dense.base is not None and metric == "miou":
        axes.axhline(dense.base.value("miou"), color="black", linewidth=0.8, linestyle=(0, (1, 3)))


def _published(axes: Axes, dense: Dense, numbers: Mapping[str, int]) -> None:
    for name in dict.fromkeys(line["method"] for line in dense.published):
        lines = [line for line in dense.published if line["method"] == name]
        points = [[float(line[key]) for line in lines] for key in ("gmacs", "miou")]
        like = PUBLISHED_NAMES.get(name, name)
        style = {**_style(like, numbers[like]), "linestyle": "none", "markerfacecolor": "none"}
        axes.plot(*points, label=f"{name}, published", **style)


def _counts(axes: Axes, dense: Dense) -> None:
    """Ticks at the lower edge: what settings cost of which no mIoU was measured."""
    for name in dict.fromkeys(row["title"] for row in dense.counted):
        costs = [float(row["gmacs"]) for row in dense.counted if row["title"] == name]
        style: dict[str, Any] = {"color": COLOURS.get(name, "0.6"), "linestyle": "none", "marker": "|"}
        places = [0.02] * len(costs)
        label = f"{name}, counted"
        axes.plot(costs, places, transform=axes.get_xaxis_transform(), markersize=9, label=label, **style)


def _panel(axes: Axes, dense: Dense, metric: str, numbers: Mapping[str, int]) -> None:
    _curves(axes, dense, metric, numbers)
    axes.set_xlabel("GMACs per image")
    miou = "mIoU, % (bars: of the drop)" if dense.curves else "mIoU, %"
    axes.set_ylabel(miou if metric == "miou" else "KL(uncompressed || compressed), nats per pixel")
    axes.grid(alpha=0.3)
    images = f", {dense.base.count} images of {dense.base.row['config']['task']['dataset']}" if dense.base else ""
    axes.set_title(f"{dense.model}{images}", fontsize=10)


def figure(entries: Sequence[Dense], path: Path) -> None:
    """mIoU and KL against GMACs: curves measured here with 95 % intervals, published points hollow, costs as ticks.

    The intervals of mIoU are those of the paired drop.

    Args:
        entries: one row of panels each; KL is left out where nothing was measured of any.
        path: PNG file to write.
    """
    shown = ["miou", "kl"] if any(dense.curves for dense in entries) else ["miou"]
    titles = [name for dense in entries for name in dense.curves]
    known = [PUBLISHED_NAMES.get(line["method"], line["method"]) for dense in entries for line in dense.published]
    numbers = {name: number for number, name in enumerate(dict.fromkeys([*COLOURS, *titles, *known]))}
    size = (5.8 * len(shown), 4.6 * len(entries))
    drawing, grid = plt.subplots(len(entries), len(shown), figsize=size, squeeze=False)
    for panels, dense in zip(grid, entries, strict=True):
        for axes, metric in zip(panels, shown, strict=True):
            _panel(axes, dense, metric, numbers)
        _published(panels[0], dense, numbers)
        _counts(panels[0], dense)
        if "kl" in shown and dense.curves:
            panels[1].set_yscale("log")
    handles, labels = grid[0][0].get_legend_handles_labels()
    drawing.legend(handles, labels, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8.5, frameon=False)
    drawing.tight_layout()
    save(drawing, path)
