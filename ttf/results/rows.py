"""Published rows: two files a table, ``TABLE.jsonl`` with one row a line, ``TABLE.safetensors`` with their outcomes.

A row names the tensors of its outcomes: see ``ttf.results.packing``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ttf.data.files import atomic_write
from ttf.results.kept import DIGEST, sealed
from ttf.results.packing import Outcomes, pack, unpack
from ttf.results.store import SCHEMA, Row, Store, wrong


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read ({error}): take it from the repository again") from error


def _read_tensors(path: Path, names: set[str]) -> dict[str, Tensor]:
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in names & set(file.keys())}


def _names(rows: list[Row]) -> set[str]:
    return {name for row in rows for one in row["outcomes"].values() for name in one["tensors"]}


def complain(path: Path, what: str) -> None:
    """One line on a file that is left out."""
    print(f"left out: {path} {what}", file=sys.stderr)


class Pack:
    """The published rows of one table.

    Args:
        folder: of all packs.
        table: its name.
    """

    def __init__(self, folder: Path, table: str) -> None:
        self.table, self._lines, self._tensors = table, folder / f"{table}.jsonl", folder / f"{table}.safetensors"

    def rows(self) -> list[Row]:
        """The rows; lines that are none are left out, with a line that says so."""
        found = []
        for number, line in enumerate(self._text(), 1):
            row, what = _parsed(line)
            found += [row] if row is not None else []
            if row is None:
                complain(self._lines, f"line {number} {what}")
        return found

    def _text(self) -> list[str]:
        return self._lines.read_text(errors="replace").splitlines() if self._lines.is_file() else []

    def outcomes(self, row: Row) -> Outcomes:
        """Outcomes of one row image by image, (n, ...) each. Raises ``ValueError`` where they are damaged."""
        return unpack(row["outcomes"], _read_tensors(self._tensors, _names([row])))

    def write(self, rows: list[Row], new: dict[str, Tensor]) -> bool:
        """Replace the rows; tensors of ``new`` or of the file before. A line that says the same stays as it is.

        A row never lacks its own tensors, whenever this is interrupted: new ones first, and old ones go last.

        Returns:
            Whether anything changed.

        Raises:
            ValueError: lines or tensors of the file before are damaged, and would be lost.
        """
        before = {_plain_line(row): line for line in self._text() for row, _ in [_parsed(line)] if row is not None}
        if len(before) < len(self._text()):
            raise ValueError(f"{self._lines} has damaged lines, which would be lost: take it from the repository again")
        lines = [before.get(_plain_line(row)) or _plain_line(sealed(row)) for row in rows]
        wanted, still = _names(rows), _names([json.loads(line) for line in before.values()])
        if lines != self._text():
            there = self._read((wanted | still) - set(new)) | new
            lacking = wanted - set(there)
            if lacking:
                raise ValueError(f"{self._tensors} lacks outcomes of rows: take it from the repository again")
            self._put({name: there[name] for name in sorted((wanted | still) & set(there))})
            atomic_write(self._lines, lambda path: path.write_text("".join(f"{line}\n" for line in lines)))
        elif self._stored() <= wanted:
            return False
        if self._stored() != wanted:  # also where an earlier publication was interrupted
            self._put(dict(sorted(self._read(wanted).items())))
        return True

    def _stored(self) -> set[str]:
        """Names of the tensors of the file."""
        if not self._tensors.is_file():
            return set()
        with _opened(self._tensors) as file:
            return set(file.keys())

    def _read(self, names: set[str]) -> dict[str, Tensor]:
        return _read_tensors(self._tensors, names) if self._tensors.is_file() else {}

    def _put(self, tensors: dict[str, Tensor]) -> None:
        atomic_write(self._tensors, partial(save_file, tensors))


def _parsed(line: str) -> tuple[Row | None, str]:
    """The row of a line, else why it is none."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict) or "outcomes" not in row:
        return None, f"is no row of schema {SCHEMA}"
    what = wrong(row)
    return (None, what) if what else ({name: value for name, value in row.items() if name != DIGEST}, "")


def _plain_line(row: Row) -> str:
    return json.dumps(row, sort_keys=True, separators=(",", ":"))


class Rows:
    """All finished rows: published ones, then drafts that no published row is the same as.

    Args:
        published: folder of the packs.
        drafts: folder of the rows of this machine, see ``Store``.
    """

    def __init__(self, published: str | Path, drafts: str | Path) -> None:
        self.published, self.drafts = Path(published), Store(drafts)
        self.packs = {file.stem: Pack(self.published, file.stem) for file in sorted(self.published.glob("*.jsonl"))}
        self._where = {row["id"]: (row, pack) for pack in self.packs.values() for row in pack.rows()}
        self._drafts = {row["id"]: row for row in self.drafts.rows() if row["id"] not in self._where}

    def __iter__(self) -> Iterator[Row]:
        yield from (row for row, _ in self._where.values())
        yield from self._drafts.values()

    def with_key(self, key: str) -> list[Row]:
        """The rows of these settings, on whatever data and weights; published ones first."""
        return [row for row in self if row["key"] == key]

    def is_published(self, row: Row) -> bool:
        return row["id"] in self._where

    def outcomes(self, row: Row) -> Outcomes:
        """Outcomes of a row image by image, (n, ...) each. Raises ``ValueError`` where they are missing or damaged."""
        if row["id"] in self._where:
            return self._where[row["id"]][1].outcomes(row)
        return self.drafts.images(row["id"])

    def publish(self, table: str, wanted: Mapping[str, list[Row]], again: bool = False) -> list[str]:
        """Write rows into the pack of a table; rows that another pack has stay there, and learn their further names.

        Args:
            table: its name.
            wanted: ids of rows to the names (``experiments``) that each has in the table.
            again: drafts replace published rows of the same id, for they were measured again.

        Returns:
            Names of the packs that changed.
        """
        new: dict[str, Tensor] = {}
        packs: dict[str, Pack] = {}
        changed: dict[str, list[Row]] = {}
        for row_id, names in wanted.items():
            where = self._where.get(row_id)
            name = table if where is None else where[1].table
            packs.setdefault(name, Pack(self.published, name))
            home = changed[name] = changed[name] if name in changed else packs[name].rows()
            if where is None:
                home.append(dict(self._drafts[row_id]))
            row = next(one for one in home if one["id"] == row_id)
            names = _with_names(row.get("experiments", []), names)
            if where is None or (again and self.drafts.finished(row_id)):
                row |= self.drafts.finished(row_id) or {}
                row["outcomes"], tensors = pack(self.drafts.images(row_id))
                new |= tensors
            row["experiments"] = names
        return [name for name, rows in changed.items() if packs[name].write(sorted(rows, key=_order), new)]


def _order(row: Row) -> tuple[str, str]:
    return row["experiments"][0]["name"] if row["experiments"] else "", row["id"]


def _with_names(old: list[Row], new: list[Row]) -> list[Row]:
    """Both lists of names, each address once, ordered."""
    by_address = {(one["name"], *one["overrides"]): one for one in (*old, *new)}
    return [by_address[address] for address in sorted(by_address)]


def plain(value: Any) -> Any:
    """A row as JSON gives it back."""
    return json.loads(json.dumps(value, default=str))
