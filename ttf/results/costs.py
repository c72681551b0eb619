"""Rows of costs in CSV files: read, written whole or not at all, merged with newer ones."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ttf.data.files import atomic_write, check_replaceable

BASE = "uncompressed"
COLUMNS = ({"model", "gmacs"}, {"model", "batch"}, {"operator", "shape", "way"})  # of each kind of file, some
OF_BENCHMARKS = ("model", "batch", "method", "speed_up")
NUMBERS = ("batch", "gmacs", "mac_ratio", "speed_up", "median_ms")  # columns
AGAIN = "take it from the repository again, or remove it to time again"
Row = dict[str, Any]

# A run replaces rows that agree in all of these. Older files lack the last ones: they hold one benchmark, at one size.
SAME = ("model", "batch", "mode", "dtype", "device", "benchmark", "pixels")
FORM = ("layout", "patches", "part")  # of images and weights, of the patch embedding, of the model; "" is the usual


def read(path: Path, columns: Sequence[str] = ()) -> list[Row]:
    """The rows of a file, all values as text; none where there is no file.

    Args:
        path: of the file.
        columns: that it must have.

    Raises:
        ValueError: a column is missing, or a line was cut off or changed.
    """
    if not path.is_file():
        return []
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read ({error}): {AGAIN}") from error
    for number, row in enumerate(rows, 2):
        missing = [name for name in columns if name not in row]
        if missing:
            raise ValueError(f"{path} has no column {missing[0]}: {AGAIN}")
        if None in row or None in row.values() or not all(_is_number(row.get(name)) for name in NUMBERS):
            raise ValueError(f"{path} line {number} was cut off or changed: {AGAIN}")
    return rows


def _is_number(value: str | None) -> bool:
    try:
        float(value or 0)
    except ValueError:
        return False
    return True


def is_ours(path: Path) -> bool:
    """Whether a file begins as those of costs do; an empty one may be replaced."""
    try:
        with path.open(newline="") as file:
            columns = next(csv.reader(file), None)
    except (OSError, ValueError, csv.Error):
        return False
    return columns is None or any(kind <= set(columns) for kind in COLUMNS)


def is_our_table(path: Path) -> bool:
    """Whether a file begins as the tables beside them do."""
    with path.open("rb") as file:
        begin = file.read(2)
    return begin in (b"", b"**")


def check_file(path: Path) -> None:
    """Raise ``ValueError`` where rows, or the table beside them, would replace a file that is not ours."""
    if path.suffix != ".csv":
        raise ValueError(f"csv={path} must end in .csv: the table goes beside it as .md")
    check_replaceable(path, is_ours, "a table of costs")
    check_replaceable(path.with_suffix(".md"), is_our_table, "a table of costs")


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
    same = all(text(old, name) in ("", text(new, name)) for name in SAME)
    return same and all(text(old, name) == text(new, name) for name in FORM)


def merged(old: Sequence[Row], new: Sequence[Row]) -> list[Row]:
    """The old rows without those that the new ones replace, then the new ones.

    New rows replace those of the same benchmark, model, batch, mode, dtype, device and size of the images, also where
    other methods took part.
    """
    return [row for row in old if not any(_replaces(again, row) for again in new)] + list(new)
