"""Rows of speed in CSV files, and their table."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ttf.data.files import atomic_write

BASE = "uncompressed"
Row = dict[str, Any]

# A run replaces rows that agree in all of these. Older files lack the last two: they hold one contest, at one size.
SAME = ("model", "batch", "mode", "dtype", "device", "contest", "pixels")
# What a table says once above it, where its rows agree.
SHARED = ("dtype", "device", "attention", "operators")


def read(path: Path) -> list[Row]:
    """The rows of a file, all values as text; none where there is no file."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write(rows: Sequence[Row], path: Path) -> None:
    """Write rows as CSV, whole or not at all. Raises ``ValueError`` where the folder cannot be written."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(dict.fromkeys(name for row in rows for name in row)))
    writer.writeheader()
    writer.writerows(rows)
    atomic_write(path, lambda temporary: temporary.write_text(text.getvalue()))


def text(row: Row, name: str) -> str:
    """A value as text, "" where the row has none (or a peak that nobody saw)."""
    value = row.get(name)
    return "" if value is None or str(value) == "nan" else str(value)


def _replaces(new: Row, old: Row) -> bool:
    return all(text(old, name) in ("", text(new, name)) for name in SAME)


def merged(old: Sequence[Row], new: Sequence[Row]) -> list[Row]:
    """The old rows without those that the new ones replace, then the new ones.

    New rows replace those of the same kind of contest, model, batch, mode, dtype, device and size of the images, also
    where other methods took part.
    """
    return [row for row in old if not any(_replaces(again, row) for again in new)] + list(new)


def _figure(name: str, form: str) -> Callable[[Row], str]:
    """A column of numbers; empty where a row has none."""
    return lambda row: form.format(float(row[name])) if text(row, name) else ""


def _range(row: Row) -> str:
    return f"{float(row['median_ms']):.1f} ({float(row['low_ms']):.1f} to {float(row['high_ms']):.1f})"


def _closeness(row: Row) -> str:
    """How far the multiply-accumulates are from the anchor's, percent."""
    return f"{100 * (float(row['gmacs_of_anchor']) - 1):+.1f} %" if text(row, "gmacs_of_anchor") else ""


COLUMNS: dict[str, Callable[[Row], str]] = {
    "model": lambda row: text(row, "model"),
    "dtype": lambda row: text(row, "dtype"),
    "device": lambda row: text(row, "device"),
    "attention": lambda row: text(row, "attention"),
    "operators": lambda row: text(row, "operators"),
    "tokens": lambda row: text(row, "tokens"),
    "batch": lambda row: text(row, "batch"),
    "mode": lambda row: text(row, "mode") or "eager",
    "method": lambda row: text(row, "method"),
    "GMACs": _figure("gmacs", "{:.3f}"),
    "GMACs to ours": _closeness,
    "images/s": _figure("images_per_s", "{:.1f}"),
    "median ms (range)": _range,
    "speed-up": _figure("speed_up", "{:.2f}x"),
    "MAC ratio": _figure("mac_ratio", "{:.2f}x"),
    "of MAC ratio": _figure("of_mac_ratio", "{:.2f}"),
    "peak MiB": _figure("peak_mib", "{:.0f}"),
    "error": _figure("max_error", "{:.0e}"),
}


def _shared(rows: Sequence[Row]) -> list[str]:
    """The columns of ``SHARED`` in which all rows agree."""
    return [name for name in SHARED if len({text(row, name) for row in rows}) == 1]


def heading(rows: Sequence[Row]) -> str:
    """What all rows of a table share, in words."""
    return ", ".join(filter(None, [*(text(rows[0], name) for name in _shared(rows)), "weights at random"]))


def cells(rows: Sequence[Row]) -> list[list[str]]:
    """A table of speed, fastest per multiply-accumulate first within a contest, header first.

    Columns that say nothing, or that ``heading`` says, are left out.
    """

    def order(row: Row) -> tuple[Any, ...]:
        place = tuple(text(row, name) for name in (*SHARED, "mode", "contest"))
        share = -float(row["of_mac_ratio"])
        return row["model"], int(row.get("tokens") or 0), int(row["batch"]), place, row["method"] != BASE, share

    ordered = sorted(rows, key=order)
    columns = {name: [cell(row) for row in ordered] for name, cell in COLUMNS.items() if name not in _shared(rows)}
    shown = {name: column for name, column in columns.items() if any(column)}
    return [list(shown), *(list(line) for line in zip(*shown.values(), strict=True))]
