"""Rows of results on disk: one JSON file a run, named by the hash of what determines its numbers.

``ID.json`` a finished row, ``ID.images.safetensors`` its outcomes image by image (in the order of the seeded shuffle),
``ID.started.json`` a run that began (its config), ``ID.failed.json`` one that failed.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
import traceback
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from ttf.data.files import atomic_write
from ttf.results.kept import CHANGED, DIGEST, is_sealed, read_tensors, sealed, signature, tensors_digest, write_tensors

__all__ = [
    "OUTCOMES",
    "SCHEMA",
    "Row",
    "Store",
    "is_row",
    "read_json",
    "signature",
    "strict",
    "write_json",
    "write_row",
]

SCHEMA = 2  # of rows
OUTCOMES = "outcomes_digest"  # of a draft: of the file with its outcomes
Row = dict[str, Any]


def strict(value: Any) -> Any:
    """A value as JSON takes it: null for numbers that are none (which JSON does not have), text for objects."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): strict(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [strict(one) for one in value]
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def write_json(path: Path, content: Row) -> None:
    """Write JSON atomically. Raises ``ValueError`` where the folder cannot be written."""
    text = json.dumps(strict(content), indent=1, allow_nan=False) + "\n"
    atomic_write(path, lambda temporary: temporary.write_text(text))


def write_row(path: Path, row: Row) -> None:
    """Write a row with its digest, see ``write_json``."""
    write_json(path, sealed(strict(row)))


def read_json(path: Path) -> Row:
    """Read a row. Raises ``ValueError`` where the file is no JSON object."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:  # no JSON, or no text
        raise ValueError(f"{path} is no row of results ({error}): remove it and run again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no row of results: remove it and run again")
    return content


def is_row(path: Path) -> bool:
    """Whether a file holds a row, of this schema or of another."""
    try:
        return {"id", "config"} <= read_json(path).keys()
    except ValueError:
        return False


def _row(path: Path) -> Row | None:
    """The row of a file; None, and a line that says so, where it holds none of this schema."""
    try:
        row = read_json(path)
    except ValueError as error:
        print(f"left out: {error}", file=sys.stderr)
        return None
    what = wrong(row) if row.get("id") == path.stem else f"is no row of schema {SCHEMA}"
    if what:
        print(f"left out: {path} {what}: remove it and run again", file=sys.stderr)
        return None
    return {name: value for name, value in row.items() if name not in (DIGEST, OUTCOMES)}


def wrong(row: Row) -> str | None:
    """Why something is no row as this project writes them, in words; None: it is one."""
    if row.get("schema") != SCHEMA:
        return f"is no row of schema {SCHEMA}"
    if DIGEST not in row:
        return f"{CHANGED}, or is older than digests"
    renamed = "config" in row and signature(row["config"]) != row.get("id")
    return CHANGED if renamed or not is_sealed(row) else None


def _aside(name: str, row: Row, images: dict[str, Tensor] | None) -> Path | None:
    """A new folder for temporary files with the files of a row; None where that cannot be written either."""
    with suppress(ValueError, OSError):
        folder = Path(tempfile.mkdtemp(prefix="ttf-"))
        Store(folder)._write(name, row, images)
        return folder
    return None


class Store:
    """The rows in a folder.

    Args:
        folder: made when the first row is written.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def path(self, name: str, state: str = "") -> Path:
        return self.folder / f"{name}{'.' + state if state else ''}.json"

    def finished(self, name: str) -> Row | None:
        """The row of a finished run, or None."""
        path = self.path(name)
        return _row(path) if path.exists() else None

    def begin(self, name: str, config: Row) -> None:
        """Note the config of a run that starts now; fails at once where the folder cannot be written."""
        write_json(self.path(name, "started"), config)

    def finish(self, name: str, row: Row, images: dict[str, Tensor] | None = None) -> None:
        """Write the row of a run, whole or not at all, and drop its other files.

        Raises:
            ValueError: the folder cannot be written; what was measured is then elsewhere, as the message says.
        """
        try:
            self._write(name, row, images)
        except ValueError as error:
            aside = _aside(name, row, images)
            kept = f"; what was measured is in {aside}: move its files to {self.folder.resolve()}" if aside else ""
            raise ValueError(f"{error}{kept}") from error

    def _write(self, name: str, row: Row, images: dict[str, Tensor] | None) -> None:
        if images:
            write_tensors(self._images(name), images)
            row = {**row, OUTCOMES: tensors_digest(images)}
        write_row(self.path(name), row)
        self.settle(name)

    def settle(self, name: str) -> None:
        """Drop the notes of a run whose row is there: it may have been killed between the two."""
        with suppress(OSError):  # where nothing can be written they do no harm
            for state in ("started", "failed"):
                self.path(name, state).unlink(missing_ok=True)

    def _images(self, name: str) -> Path:
        return self.folder / f"{name}.images.safetensors"

    def images(self, name: str) -> dict[str, Tensor]:
        """Outcomes of a row image by image, (n,) each. Raises ``ValueError`` where they are missing or corrupt."""
        said = read_json(self.path(name)).get(OUTCOMES)
        try:
            return read_tensors(self._images(name), said)
        except ValueError as error:
            raise ValueError(f"{error}: run again with force=true") from error

    def is_whole(self, name: str) -> bool:
        """Whether the outcomes of a finished row are as they were written; a line that says so where they are not."""
        said = read_json(self.path(name)).get(OUTCOMES)
        try:
            if said is not None:
                read_tensors(self._images(name), said)
        except ValueError as error:
            print(f"made anew: {error}", file=sys.stderr)
            return False
        return True

    def note_experiments(self, row: Row, experiments: list[Row]) -> Row:
        """The row, with these names among those that it has, on disk too."""
        new = [one for one in experiments if one not in row["experiments"]]
        if not new or not self.path(row["id"]).exists():
            return row
        row = {**row, "experiments": [*row["experiments"], *new]}
        write_row(self.path(row["id"]), row)
        return row

    def forget(self, name: str) -> None:
        """Drop the note of a run that could not begin."""
        self.path(name, "started").unlink(missing_ok=True)

    def fail(self, name: str, config: Row, error: BaseException) -> None:
        """Record a failure with its traceback."""
        text = "".join(traceback.format_exception(error))
        with suppress(ValueError, OSError):  # a disk that is full or read-only must not hide what happened
            self.forget(name)
            write_json(self.path(name, "failed"), {"config": config, "error": str(error), "traceback": text})

    def rows(self) -> list[Row]:
        """All finished rows, ordered by name. Other files are left out, with a line that says so."""
        return [row for f in sorted(self.folder.glob("*.json")) if "." not in f.stem and (row := _row(f)) is not None]

    def failures(self) -> list[Row]:
        """All recorded failures."""
        return [read_json(f) for f in sorted(self.folder.glob("*.failed.json"))]
