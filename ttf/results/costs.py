"""Rows of costs in CSV files: read, written whole or not at all, merged with newer ones."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ttf.data.files import atomic_write

BASE = "uncompressed"
Row = dict[str, Any]

# A run replaces rows that agree in all of these. Older files lack the last two: they hold one benchmark, at one size.
SAME = ("model", "batch", "mode", "dtype", "device", "benchmark", "pixels")


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

    New rows replace those of the same benchmark, model, batch, mode, dtype, device and size of the images, also where
    other methods took part.
    """
    return [row for row in old if not any(_replaces(again, row) for again in new)] + list(new)
