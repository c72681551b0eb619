"""Tables from rows: pure functions to markdown and to the terminal."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from rich.console import Console
from rich.table import Table

from ttf.metrics.paired import compare, top1_difference
from ttf.results.measured import Measured

LEGEND = (
    "drop: points of top-1 below the uncompressed model, paired 95 % interval; agree: images with the uncompressed "
    "model's class; KL: KL(uncompressed || compressed), nats; err: relative L2 error of the classifier's input; "
    "of MACs: speed-up / (MACs uncompressed / MACs compressed); vs ToMe: against ToMe (r tokens per block, as "
    "published) at the nearest GMACs on the same images, points of top-1 (McNemar's exact p) and ratio of the mean KL "
    "(Wilcoxon's signed-rank p)"
)
PAPER_LEGEND = (
    "paper: quoted, Tables 6-8 are DeiT-S on ImageNet; verdict: does the paper's drop lie in the interval of the "
    "measured one?"
)
PAPER_BASE = 79.8  # DeiT-S on ImageNet, the uncompressed row of Tables 6-8

Cells = list[list[str]]


@dataclass(frozen=True)
class Line:
    """One line of a table.

    Attributes:
        title: its first cell.
        measured: the row.
        base: the uncompressed row.
        tome: ToMe at the nearest GMACs, if measured.
        paper_top1: what the paper prints, percent.
        paper_base: what it prints for the uncompressed model.
    """

    title: str
    measured: Measured
    base: Measured
    tome: Measured | None = None
    paper_top1: float | None = None
    paper_base: float = PAPER_BASE

    @cached_property
    def drop(self) -> tuple[float, tuple[float, float]]:
        """Points of top-1 lost, and the paired 95 % interval."""
        return top1_difference(self.base.images["top1"], self.measured.images["top1"])

    @property
    def is_base(self) -> bool:
        return self.measured.row["id"] == self.base.row["id"]


def small(value: float) -> str:
    """A figure of four decimals, or in powers of ten below 0.001."""
    return f"{value:.4f}" if value == 0 or value >= 1e-3 else f"{value:.0e}"


def p_value(p: float) -> str:
    return "p < 0.001" if p < 1e-3 else f"p = {p:.3f}"


def _top1(line: Line) -> str:
    low, high = line.measured.interval("top1")
    return f"{line.measured.value('top1'):.1f} [{low:.1f}, {high:.1f}]"


def _drop(line: Line) -> str:
    drop, (low, high) = line.drop
    return "" if line.is_base else f"{drop:.1f} [{low:.1f}, {high:.1f}]"


def _paper(line: Line) -> str:
    top1 = line.paper_top1
    return "" if top1 is None else f"{top1:.1f} (-{line.paper_base - top1:.1f})"


def _difference(line: Line) -> str:
    if line.paper_top1 is None or line.is_base:
        return ""
    return f"{line.drop[0] - (line.paper_base - line.paper_top1):+.1f}"


def _verdict(line: Line) -> str:
    if line.paper_top1 is None or line.is_base:
        return ""
    quoted, (_, (low, high)) = line.paper_base - line.paper_top1, line.drop
    if low <= quoted <= high:
        return "agrees"
    return "loses more" if quoted < low else "loses less"


def _against_tome(line: Line) -> str:
    if line.tome is None or line.is_base or line.tome.row["id"] == line.measured.row["id"]:
        return ""
    paired = compare(line.measured.images, line.tome.images)
    top1 = f"{paired.top1:+.1f} ({p_value(paired.top1_p)})"
    return f"{top1}, KL x {paired.kl_ratio:.2f} ({p_value(paired.kl_p)}) at {line.tome.gmacs:.3f}"


def _speed(line: Line) -> str:
    speed = (line.measured.row["throughput"] or {}).get("compressed")
    if not speed:
        return ""
    possible = line.base.gmacs / line.measured.gmacs
    return f"{speed['speed_up']:.2f}x, {speed['speed_up'] / possible:.2f} of MACs"


COLUMNS: dict[str, Callable[[Line], str]] = {
    "": lambda line: line.title,
    "paper top-1 (drop)": _paper,
    "top-1 % [95 %]": _top1,
    "drop [95 %]": _drop,
    "difference": _difference,
    "verdict": _verdict,
    "agree %": lambda line: f"{line.measured.value('agreement'):.1f}",
    "KL": lambda line: small(line.measured.value("kl")),
    "err": lambda line: f"{line.measured.value('class_token_error'):.3f}",
    "GMACs": lambda line: f"{line.measured.gmacs:.3f}",
    "vs ToMe": _against_tome,
    "speed-up": _speed,
}


def table(lines: Sequence[Line], without: Sequence[str] = ()) -> Cells:
    """Cells, header first; columns in which no line has anything are left out, and those named in ``without``."""
    columns = {name: [cell(line) for line in lines] for name, cell in COLUMNS.items() if name not in without}
    shown = {name: cells for name, cells in columns.items() if any(cells)}
    return [list(shown), *(list(cells) for cells in zip(*shown.values(), strict=True))]


def natural(name: str) -> list[tuple[int, float, str]]:
    """Sort key: numbers in names by value (tau_20 before tau_100)."""
    parts = re.split(r"(\d+(?:\.\d+)?)", name)
    return [(0, float(part), "") if re.fullmatch(r"[\d.]+", part) else (1, 0.0, part) for part in parts if part]


def grouped(pairs: Sequence[tuple[str, Measured]], label: Callable[[Measured], str]) -> Mapping[str, list]:
    """(name, row) pairs by heading: the model, what ``label`` says of a row, the images and the device."""
    groups: dict[str, list[tuple[str, Measured]]] = {}
    for name, m in sorted(pairs, key=lambda pair: (pair[1].model, label(pair[1]), natural(pair[0]))):
        row = m.row
        place = f"{m.count} images of {row['config']['task']['dataset']}, {row['dtype']}, {row['device']}"
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
