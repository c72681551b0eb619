"""The table of a benchmark: its columns, what stands above it, its cells."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ttf.results.costs import BASE, Row, text

# What a table says once above it, where its rows agree.
SHARED = ("dtype", "device", "attention", "operators")


def _plain(name: str) -> Callable[[Row], str]:
    return lambda row: text(row, name)


def _figure(name: str, form: str) -> Callable[[Row], str]:
    """A column of numbers; empty where a row has none."""
    return lambda row: form.format(float(row[name])) if text(row, name) else ""


def _range(row: Row) -> str:
    return f"{float(row['median_ms']):.1f} ({float(row['low_ms']):.1f} to {float(row['high_ms']):.1f})"


def _closeness(row: Row) -> str:
    """How far the multiply-accumulates are from the reference's, percent."""
    return f"{100 * (float(row['gmacs_of_reference']) - 1):+.1f} %" if text(row, "gmacs_of_reference") else ""


COLUMNS: dict[str, Callable[[Row], str]] = {
    **{name: _plain(name) for name in ("model", *SHARED, "tokens", "batch")},
    "mode": lambda row: text(row, "mode") or "eager",
    "layout": _plain("layout"),
    "patches": _plain("patches"),
    "part": _plain("part"),
    "method": _plain("method"),
    "fitted on": _plain("fitted_on"),
    "GMACs": _figure("gmacs", "{:.3f}"),
    "GMACs to reference": _closeness,
    "images/s": _figure("images_per_s", "{:.1f}"),
    "median ms (range)": _range,
    "speed-up": _figure("speed_up", "{:.2f}x"),
    "MAC ratio": _figure("mac_ratio", "{:.2f}x"),
    "efficiency": _figure("efficiency", "{:.2f}"),
    "peak MiB": _figure("peak_mib", "{:.0f}"),
    "error": _figure("max_error", "{:.0e}"),
}


def _shared(rows: Sequence[Row]) -> list[str]:
    """The columns of ``SHARED`` in which all rows agree."""
    return [name for name in SHARED if len({text(row, name) for row in rows}) == 1]


def heading(rows: Sequence[Row]) -> str:
    """What all rows of a table share, in words."""
    return ", ".join(filter(None, [*(text(rows[0], name) for name in _shared(rows)), "weights at random"]))


def _order(row: Row) -> tuple[Any, ...]:
    """The uncompressed model first, then the most efficient, within a benchmark at one size, batch and place."""
    place = tuple(text(row, name) for name in (*SHARED, "mode", "layout", "patches", "part", "benchmark"))
    rank = (row["method"] != BASE, -float(row["efficiency"]))
    return row["model"], int(row.get("tokens") or 0), int(row["batch"]), place, *rank


def cells(rows: Sequence[Row]) -> list[list[str]]:
    """A table of speed, header first. Columns that say nothing, or that ``heading`` says, are left out."""
    ordered = sorted(rows, key=_order)
    columns = {name: [cell(row) for row in ordered] for name, cell in COLUMNS.items() if name not in _shared(rows)}
    shown = {name: column for name, column in columns.items() if any(column)}
    return [list(shown), *(list(line) for line in zip(*shown.values(), strict=True))]
