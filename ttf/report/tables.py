"""Tables from rows of any task: lines, columns, and their text in markdown and on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from rich.console import Console
from rich.table import Table

from ttf.metrics import Estimate, Metric, headline, of_task
from ttf.results.measured import Measured

Cells = list[list[str]]
PAPER_LEGEND = (
    "paper: quoted, see the table's file in configs/tables; verdict: does the paper's {loss} lie in the interval of "
    "the measured one?"
)


@dataclass(frozen=True)
class Line:
    """One line of a table.

    Attributes:
        title: its first cell.
        measured: the row.
        base: the uncompressed row.
        tome: ToMe at the nearest GMACs, if measured.
        paper: what the paper prints of it, by metric.
        paper_base: what it prints of the uncompressed model.
    """

    title: str
    measured: Measured
    base: Measured
    tome: Measured | None = None
    paper: Mapping[str, Any] = field(default_factory=dict)
    paper_base: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def lost(self) -> Estimate | None:
        """How much worse the headline metric is than uncompressed, paired; None where that says nothing."""
        if self.is_base:
            return None
        return self.measured.headline.lost_between(self.base.images, self.measured.images)

    @property
    def quoted(self) -> float | None:
        """The headline metric as the paper prints it."""
        value = self.paper.get(self.measured.headline.name)
        return None if value is None else float(value)

    @property
    def paper_lost(self) -> float | None:
        """How much worse the paper's headline metric is than its uncompressed one; None where it does not say."""
        metric = self.measured.headline
        if self.quoted is None or self.is_base or metric.name not in self.paper_base:
            return None
        return metric.lost(float(self.paper_base[metric.name]), self.quoted)

    @property
    def is_base(self) -> bool:
        return self.measured.row["id"] == self.base.row["id"]


def p_value(p: float) -> str:
    return "p < 0.001" if p < 1e-3 else f"p = {p:.3f}"


def verdict(metric: Metric, lost: Estimate | None, paper_lost: float | None) -> str:
    """Whether the paper's loss lies in the interval of the measured one; both as they are shown."""
    if lost is None or paper_lost is None:
        return ""
    quoted, low, high = (round(value, metric.decimals) for value in (paper_lost, lost.low, lost.high))
    if low <= quoted <= high:
        return "agrees"
    return "loses more" if quoted < low else "loses less"


def _paper(line: Line) -> str:
    """What the paper prints, and its change from the uncompressed model."""
    metric = line.measured.headline
    if line.quoted is None:
        return ""
    if line.paper_lost is None:
        return metric.text(line.quoted)
    return f"{metric.text(line.quoted)} ({metric.text(line.quoted - float(line.paper_base[metric.name]))})"


def _difference(line: Line) -> str:
    if line.lost is None or line.paper_lost is None:
        return ""
    return f"{line.lost.value - line.paper_lost:+.{line.measured.headline.decimals}f}"


def _share(line: Line) -> str:
    return f"{100 * line.measured.gmacs / line.base.gmacs:.1f}" if line.base.gmacs else ""  # of a constant


def _setting(line: Line) -> str:
    """Keep ratio and the blocks, counted from 1, that reduce."""
    schedule, tokens = line.measured.schedule, line.measured.row["tokens"]
    if line.is_base or "ratio" not in schedule:
        return f"r = {schedule['r']}" if "r" in schedule else ""
    blocks = ", ".join(str(layer["block"]) for layer in tokens) if tokens else "every block"
    return f"{schedule['ratio']} at {blocks}"


def _against_tome(line: Line) -> str:
    tome, ours = line.tome, line.measured
    if tome is None or line.is_base or tome.row["id"] == ours.row["id"]:
        return ""
    parts = [_compared(metric, ours, tome) for metric in of_task(ours.task) if metric.test]
    return f"{', '.join(parts)} at {tome.gmacs:.3f}" if parts else ""


def _compared(metric: Metric, ours: Measured, other: Measured) -> str:
    """A metric against another row's: its paired difference, or the ratio where it has none, with p."""
    assert metric.test is not None
    p = p_value(metric.test(ours.images, other.images))
    if metric.difference is not None:
        return f"{metric.difference(ours.images, other.images).value:+.{metric.decimals}f} ({p})"
    base = other.estimate(metric).value
    ratio = ours.estimate(metric).value / base if base else float("nan")
    return f"{metric.label} x {ratio:.2f} ({p})"


def _speed(line: Line) -> str:
    speed_up = line.measured.speed_up
    if speed_up is None:
        return ""
    return f"{speed_up:.2f}x, efficiency {speed_up / (line.base.gmacs / line.measured.gmacs):.2f}"


Column = tuple[str, Callable[[Line], str]]  # heading and cell
METRICS = "metrics"  # stands for all metrics but the headline
ABLATION = ("title", "paper", "headline", "loss", "difference", "verdict", METRICS, "gmacs", "tome", "speed")
BUDGETS = ("title", "setting", "gmacs", "share", "headline", "loss", METRICS)


def columns(task: str, layout: Sequence[str]) -> dict[str, Column]:
    """The columns of a layout for a task, by key."""
    main = headline(task)
    known: dict[str, Column] = {
        "title": ("", lambda line: line.title),
        "setting": ("keep ratio", _setting),
        "paper": (f"paper {main.label} ({main.loss})", _paper),
        "headline": (f"{main.head} [95 %]", lambda line: main.bracketed(line.measured.estimate(main))),
        "loss": (f"{main.loss} [95 %]", lambda line: main.bracketed(line.lost) if line.lost else ""),
        "difference": ("difference", _difference),
        "verdict": ("verdict", lambda line: verdict(main, line.lost, line.paper_lost)),
        "gmacs": ("GMACs", lambda line: f"{line.measured.gmacs:.3f}"),
        "share": ("% of uncompressed", _share),
        "tome": ("vs ToMe", _against_tome),
        "speed": ("speed-up", _speed),
    }
    others = {m.name: _column(m) for m in of_task(task) if m.in_tables and not m.headline}
    found: dict[str, Column] = {}
    for key in layout:
        found |= others if key == METRICS else {key: known[key]}
    return found


def _column(metric: Metric) -> Column:
    return metric.head, lambda line: metric.text(line.measured.estimate(metric).value)


def task_of(spec: Any) -> str:
    """The task that a table's experiments choose, where nothing of them was measured."""
    return next((row.overrides["task"] for row in spec.rows if "task" in row.overrides), "cls")


def table(
    lines: Sequence[Line],
    layout: Sequence[str] = ABLATION,
    without: Sequence[str] = (),
    quoted: Sequence[Mapping[str, str]] = (),
    task: str | None = None,
) -> Cells:
    """Cells, header first; columns in which no line has anything are left out.

    Args:
        lines: measured ones, of one task.
        layout: keys of the columns.
        without: keys, or names of metrics, that are left out.
        quoted: further lines, that were not measured: text by key of the column.
        task: whose metrics; None: that of the lines.
    """
    chosen = {key: c for key, c in columns(task or lines[0].measured.task, layout).items() if key not in without}
    cells = {
        key: [*(cell(line) for line in lines), *(q.get(key, "") for q in quoted)] for key, (_, cell) in chosen.items()
    }
    shown = [key for key, column in cells.items() if any(column)]
    return [[chosen[key][0] for key in shown], *(list(row) for row in zip(*(cells[key] for key in shown), strict=True))]


def legend(task: str, layout: Sequence[str], quotes: bool = False) -> str:
    """What the columns mean, a sentence.

    Args:
        task: whose metrics.
        layout: keys of the columns.
        quotes: whether the paper is quoted.
    """
    main, metrics = headline(task), of_task(task)
    meant = {
        m.name: f"{m.label}: {m.meaning}{', ' + m.unit if m.unit not in ('', '%') else ''}"
        for m in metrics
        if m.meaning
    }
    others = "; ".join(meant[m.name] for m in metrics if m.in_tables and not m.headline and m.name in meant)
    said = {
        "headline": meant.get(main.name, ""),
        "loss": f"{main.loss}: {main.points} {'below' if main.higher_is_better else 'above'} the uncompressed model, "
        "paired 95 % interval",
        METRICS: others,
        "speed": "efficiency: speed-up / (MACs uncompressed / MACs compressed)",
        "tome": _tome_legend(task),
    }
    parts = [said[key] for key in ("headline", "loss", METRICS, "speed", "tome") if key in layout and said[key]]
    return "; ".join([*parts, *([PAPER_LEGEND.format(loss=main.loss)] if quotes else [])]) + "."


def _tome_legend(task: str) -> str:
    compared = [m for m in of_task(task) if m.test]
    how = [f"{m.points} with p" if m.difference else f"ratio of the mean {m.label} with p" for m in compared]
    if not how:
        return ""
    where = "vs ToMe: against ToMe (r tokens per block, as published) at the nearest GMACs on the same images"
    return f"{where}, {' and '.join(how)} (McNemar's exact test of what is right or wrong, else Wilcoxon's signed-rank)"


def grouped(
    pairs: Sequence[tuple[str, Measured]], label: Callable[[Measured], str]
) -> Mapping[str, list[tuple[str, Measured]]]:
    """(name, row) pairs by heading: the model, what ``label`` says of a row, the images and the device."""
    groups: dict[str, list[tuple[str, Measured]]] = {}
    for name, m in sorted(pairs, key=lambda pair: (pair[1].model, label(pair[1]))):
        place = f"{m.count} images of {m.data_set}, {m.config['dtype']}, {m.row['device']}"
        heading = ", ".join(part for part in (m.model, label(m)) if part)
        groups.setdefault(f"{heading}: {place}", []).append((name, m))
    return groups


def markdown(cells: Sequence[Sequence[str]]) -> str:
    """A markdown table, header first."""
    head, *body = (f"| {' | '.join(line)} |" for line in cells)
    return "\n".join([head, "|" + "---|" * len(cells[0]), *body]) + "\n"


def show(cells: Sequence[Sequence[str]], title: str) -> None:
    """The same on the terminal, every cell whole: a line may be longer than the terminal is wide."""
    shown = Table(title=title, box=None, padding=(0, 1, 0, 0), pad_edge=False, title_justify="left")
    for name in cells[0]:
        shown.add_column(name, no_wrap=True)
    for line in cells[1:]:
        shown.add_row(*line)
    needed = sum(max(len(cell) for cell in column) + 1 for column in zip(*cells, strict=True))
    Console(width=max(Console().width, needed)).print(shown)
