"""Rows of results for tables and figures: found by experiment, each with its uncompressed row and ToMe beside it."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from torch import Tensor

from ttf.metrics import measure
from ttf.results.store import Row, Store

COMPARABLE = ("model", "data", "limit", "seed", "dtype", "task")


@dataclass(frozen=True)
class Measured:
    """A row and its outcomes image by image.

    Attributes:
        row: as on disk.
        store: where it comes from.
        skip: leave out so many images, the first of the seeded shuffle; the metrics are then those of the others.
    """

    row: Row
    store: Store
    skip: int = 0

    def without(self, skip: int) -> Measured:
        """The same row without the first ``skip`` images; itself, with what it has read, where nothing changes."""
        return self if skip == self.skip else replace(self, skip=skip)

    @cached_property
    def images(self) -> dict[str, Tensor]:
        """Outcomes image by image; read once."""
        return {name: values[self.skip :] for name, values in self.store.images(self.row["id"]).items()}

    @cached_property
    def metrics(self) -> dict[str, dict[str, Any]]:
        """Means and 95 % intervals."""
        return measure("cls", self.images) if self.skip else self.row["metrics"]

    @property
    def count(self) -> int:
        """Number of images."""
        return self.row["images"] - self.skip

    @property
    def method(self) -> dict[str, Any]:
        return self.row["config"]["method"]

    @property
    def model(self) -> str:
        return self.row["config"]["model"]["name"]

    @property
    def gmacs(self) -> float:
        return self.row["gmacs"]

    def value(self, metric: str) -> float:
        return self.metrics[metric]["value"]

    def interval(self, metric: str) -> tuple[float, float]:
        low, high = self.metrics[metric]["ci95"]
        return low, high

    def comparable(self, other: Measured) -> bool:
        """Whether both are of the same model on the same images in the same arithmetic."""
        mine, theirs = self.row["config"], other.row["config"]
        return all(mine.get(key) == theirs.get(key) for key in COMPARABLE)


def read(folder: str | Path) -> list[Measured]:
    """All finished rows of a folder."""
    store = Store(folder)
    return [Measured(row, store) for row in store.rows()]


def of_experiment(rows: Sequence[Measured], folder: str) -> list[tuple[str, Measured]]:
    """Pairs (name below ``folder``, row) of the experiments FOLDER/NAME; a sweep gives several of one name."""
    start = f"{folder}/"
    return [(n.removeprefix(start), m) for m in rows for n in m.row["experiments"] if n.startswith(start)]


def uncompressed(rows: Sequence[Measured], like: Measured) -> Measured:
    """The uncompressed row to compare with. Raises ``ValueError`` where it has not been measured."""
    found = [m for m in rows if m.method.get("method") == "none" and m.comparable(like)]
    found.sort(key=lambda m: m.row["config"].get("checkpoint") is not None)  # the model's own weights before others
    if not found:
        raise ValueError(f"{like.model} has no uncompressed row: run scripts/eval.py experiment=readings/none first")
    return found[0].without(like.skip)


def nearest_tome(rows: Sequence[Measured], like: Measured) -> Measured | None:
    """ToMe as published (r tokens fewer in every block) at the nearest GMACs; None where there is no such row."""
    found = [m for m in rows if "fig4a_tome/tome" in m.row["experiments"] and m.comparable(like)]
    nearest = min(found, key=lambda m: abs(m.gmacs - like.gmacs), default=None)
    return nearest and nearest.without(like.skip)


def halves(pairs: Sequence[tuple[str, Measured]]) -> list[tuple[str, Measured]]:
    """Rows of a study: those over a first part of the images as they are, those over all without that part."""
    limits = [m.row["config"]["limit"] for _, m in pairs]
    part = max((limit for limit in limits if limit), default=0)
    return [(name, m if m.row["config"]["limit"] else m.without(part)) for name, m in pairs]


def reading(row: Measured) -> str:
    """Which reading of the equations a row of Token Transforming is, in words; "" for other methods."""
    method = row.method
    if method.get("method") != "token_transform":
        return ""
    if method["preset"] == "default":
        return "the default"
    both = method.get("isolate") and method.get("accumulate")
    return "class token isolated, sizes carried over" if both else "the literal equations"


def quoted(folder: str | Path, table: str) -> dict[str, dict[str, str]]:
    """What the paper prints, by name of the experiment: ``FOLDER/TABLE.csv``; nothing where it prints nothing."""
    return {line["row"]: line for line in _csv(folder, table)}


def printed_lines(folder: str | Path, table: str) -> list[dict[str, str]]:
    """A table that the paper prints line by line, with peers' lines among ours; none where it prints no such table."""
    return [line for line in _csv(folder, table) if "model" in line]


def _csv(folder: str | Path, table: str) -> list[dict[str, str]]:
    path = Path(folder) / f"{table}.csv"
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@cache
def title(experiments: Path, folder: str, name: str) -> str:
    """An experiment's line in tables and figures, from its file; its name where there is none."""
    path = experiments / folder / f"{name}.yaml"
    found = OmegaConf.select(OmegaConf.load(path), "title") if path.is_file() else None
    return found or name
