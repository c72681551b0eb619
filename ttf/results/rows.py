"""Published rows: two files a table, ``TABLE.jsonl`` with one row a line, ``TABLE.safetensors`` with their outcomes.

A row names the tensors of its outcomes: see ``ttf.results.packing``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ttf.data.files import atomic_write
from ttf.results.packing import Outcomes, pack, unpack
from ttf.results.store import SCHEMA, Row, Store


def _read_tensors(path: Path, names: set[str]) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            there = names & set(file.keys())
            return {name: file.get_tensor(name) for name in there}
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read ({error}): take it from the repository again") from error


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
        return [row for row in self._parsed() if row is not None]

    def _parsed(self) -> Iterator[Row | None]:
        if not self._lines.is_file():
            return
        for number, line in enumerate(self._lines.read_text(errors="replace").splitlines(), 1):
            with suppress(json.JSONDecodeError):
                row = json.loads(line)
                if isinstance(row, dict) and row.get("schema") == SCHEMA and "outcomes" in row:
                    yield row
                    continue
            complain(self._lines, f"line {number} is no row of schema {SCHEMA}")

    def outcomes(self, row: Row) -> Outcomes:
        """Outcomes of one row image by image, (n, ...) each. Raises ``ValueError`` where they are damaged."""
        return unpack(row["outcomes"], _read_tensors(self._tensors, _names([row])))

    def write(self, rows: list[Row], new: dict[str, Tensor]) -> bool:
        """Replace the rows; tensors of ``new`` or of the file before. Tensors first: a row never lacks its own.

        Returns:
            Whether anything changed.
        """
        text = "".join(json.dumps(row, sort_keys=True, separators=(",", ":")) + "\n" for row in rows)
        if self._lines.is_file() and self._lines.read_bytes() == text.encode():
            return False
        wanted = _names(rows)
        kept = _read_tensors(self._tensors, wanted - set(new)) if self._tensors.is_file() else {}
        both = {name: tensor for name, tensor in sorted((kept | new).items()) if name in wanted}
        assert wanted == set(both), "a row whose outcomes are nowhere"
        atomic_write(self._tensors, partial(save_file, both))
        atomic_write(self._lines, lambda path: path.write_text(text))
        return True


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
        changed: dict[str, list[Row]] = {name: pack.rows() for name, pack in self.packs.items()}
        changed.setdefault(table, [])
        for row_id, names in wanted.items():
            where = self._where.get(row_id)
            home = changed[table if where is None else where[1].table]
            if where is None:
                home.append(dict(self._drafts[row_id]))
            row = next(one for one in home if one["id"] == row_id)
            names = _with_names(row.get("experiments", []), names)
            if where is None or (again and self.drafts.finished(row_id)):
                row |= self.drafts.finished(row_id) or {}
                row["outcomes"], tensors = pack(self.drafts.images(row_id))
                new |= tensors
            row["experiments"] = names
        packs = {name: Pack(self.published, name) for name in changed}
        return [name for name, rows in changed.items() if rows and packs[name].write(sorted(rows, key=_order), new)]


def _order(row: Row) -> tuple[str, str]:
    return row["experiments"][0]["name"] if row["experiments"] else "", row["id"]


def _with_names(old: list[Row], new: list[Row]) -> list[Row]:
    """Both lists of names, each address once, ordered."""
    by_address = {(one["name"], *one["overrides"]): one for one in (*old, *new)}
    return [by_address[address] for address in sorted(by_address)]


def plain(value: Any) -> Any:
    """A row as JSON gives it back."""
    return json.loads(json.dumps(value, default=str))
