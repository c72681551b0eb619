"""Numbers of files that hold no rows of results: lines of a CSV, values of a JSON file."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ttf.results.costs import read as read_csv

OF_SEVERAL: dict[str, Callable[[Sequence[float]], float]] = {"sum": math.fsum, "lowest": min, "highest": max}


@dataclass(frozen=True)
class Number:
    """A number and how it is written where nothing is said about that; NaN: a text."""

    value: float
    text: str


class Files:
    """Files of numbers, each read once.

    Args:
        costs: folder of the files that are called by their name alone (``results/speed``).
        trainings: folder of those that are called by a path (``results/training``).
    """

    def __init__(self, costs: Path, trainings: Path) -> None:
        self.costs, self.trainings = costs, trainings
        self._csv: dict[str, list[dict[str, Any]]] = {}
        self._json: dict[str, Any] = {}

    def _path(self, name: str) -> Path:
        path = (self.trainings if "/" in name else self.costs) / name
        if not path.is_file():
            raise ValueError(f"there is no file {path}")
        return path

    def of_csv(self, name: str, column: str, where: Sequence[str]) -> Number:
        """``column`` of the lines in which every KEY is VALUE; a column of several lines must be the same in all.

        Args:
            name: of the file.
            column: its name; ``sum:``, ``lowest:``, ``highest:`` before it: of all these lines.
            where: KEY=VALUE or KEY=LOW..HIGH each, with ``_`` for a space.

        Raises:
            ValueError: no such file, line, or column, or several lines with other values.
        """
        if name not in self._csv:
            self._csv[name] = read_csv(self._path(name))
        lines: Sequence[Mapping[str, Any]] = self._csv[name]
        for key, _, value in (one.partition("=") for one in where):
            lines = _with(lines, key, value)
        how, _, key = column.rpartition(":")
        values = [str(line[key]) for line in lines if line.get(key) not in (None, "")]
        if how:
            if not values or how not in OF_SEVERAL:
                raise ValueError(f"{column} of {len(values)} lines of {name}: {', '.join(OF_SEVERAL)} of one or more")
            number = OF_SEVERAL[how]([float(one) for one in values])
            return Number(number, f"{number:g}")
        if len(set(values)) != 1:
            raise ValueError(f"{len(values)} lines of {name} have a {key} and fit {' '.join(where)!r}")
        return _number(values[0])

    def of_json(self, name: str, keys: str) -> Number:
        """The value at KEY.KEY. Raises ``ValueError`` where there is no such file or key."""
        if name not in self._json:
            self._json[name] = json.loads(self._path(name).read_text())
        found = self._json[name]
        for key in keys.split("."):
            if not isinstance(found, dict) or key not in found:
                raise ValueError(f"{name} has no {keys}")
            found = found[key]
        return _number(str(found))


def _number(text: str) -> Number:
    try:
        return Number(float(text), text)
    except ValueError:
        return Number(math.nan, text)


def _with(lines: Sequence[Mapping[str, Any]], key: str, value: str) -> list[Mapping[str, Any]]:
    """Lines in which KEY is VALUE; where it is none's, and VALUE no number, those that begin with it."""
    low, between, high = value.partition("..")
    if between:
        return [line for line in lines if float(low) <= float(_text(line, key)) <= float(high)]
    wanted = value.replace("_", " ")
    same = [line for line in lines if _text(line, key) == wanted]
    if same or value[:1].isdigit():
        return same
    return [line for line in lines if _text(line, key).startswith(wanted)]


def _text(line: Mapping[str, Any], key: str) -> str:
    return str(line.get(key, "")).replace("_", " ")
