"""Rows of speed in CSV files, and their table."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ttf.data.files import atomic_write

BASE = "uncompressed"
Row = dict[str, Any]


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


def merged(old: Sequence[Row], new: Sequence[Row]) -> list[Row]:
    """The old rows without those of the same contest (model, settings) as a new one, then the new ones."""
    again = {(row["model"], row["settings"]) for row in new}
    return [row for row in old if (row["model"], row.get("settings")) not in again] + list(new)


def _range(row: Row) -> str:
    return f"{float(row['median_ms']):.1f} ({float(row['low_ms']):.1f} to {float(row['high_ms']):.1f})"


COLUMNS = {
    "model": lambda r: r["model"],
    "batch": lambda r: str(r["batch"]),
    "mode": lambda r: r["mode"],
    "method": lambda r: r["method"],
    "GMACs": lambda r: f"{float(r['gmacs']):.3f}",
    "images/s": lambda r: f"{float(r['images_per_s']):.1f}",
    "median ms (range)": _range,
    "speed-up": lambda r: f"{float(r['speed_up']):.2f}x",
    "MAC ratio": lambda r: f"{float(r['mac_ratio']):.2f}x",
    "of MAC ratio": lambda r: f"{float(r['of_mac_ratio']):.2f}",
    "peak MiB": lambda r: f"{float(r['peak_mib']):.0f}",
}


def cells(rows: Sequence[Row]) -> list[list[str]]:
    """A table of speed, fastest per multiply-accumulate first within a contest, header first."""

    def order(row: Row) -> tuple[Any, ...]:
        return row["model"], int(row["batch"]), row["mode"], row["method"] != BASE, -float(row["of_mac_ratio"])

    ordered = sorted(rows, key=order)
    return [list(COLUMNS), *([column(row) for column in COLUMNS.values()] for row in ordered)]
