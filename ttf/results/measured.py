"""Rows of results for tables and figures: found by experiment, each with its uncompressed row and ToMe beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from torch import Tensor

from ttf.metrics import Estimate, Metric, headline, named
from ttf.metrics.outcomes import select
from ttf.results.rows import Rows
from ttf.results.store import Row

COMPARABLE = ("task", "data_set", "data", "limit", "skip", "seed", "dtype")


@dataclass(frozen=True)
class Measured:
    """A row and its outcomes image by image.

    Attributes:
        row: as on disk.
        load: reads its outcomes, (n, ...) each.
        skip: leave out so many images, the first of the seeded shuffle; the metrics are then those of the others.
    """

    row: Row
    load: Callable[[], dict[str, Tensor]]
    skip: int = 0

    def without(self, skip: int) -> Measured:
        """The same row without the first ``skip`` images; itself, with what it has read, where nothing changes."""
        return self if skip == self.skip else replace(self, skip=skip)

    @cached_property
    def images(self) -> dict[str, Tensor]:
        """Outcomes image by image; read once."""
        found = self.load()
        return select(found, slice(self.skip, None)) if self.skip else found

    @property
    def count(self) -> int:
        """Number of images."""
        return self.row["images"] - self.skip

    @property
    def config(self) -> Row:
        """Its settings."""
        return self.row["config"]

    @property
    def task(self) -> str:
        return _name(self.config["task"])

    @property
    def data_set(self) -> str:
        return _name(self.config["data_set"])

    @property
    def model(self) -> str:
        return _name(self.config["model"])

    @property
    def method(self) -> Row | None:
        """Class and fields of the method; None: the uncompressed model."""
        return self.config["method"]

    @property
    def schedule(self) -> Row:
        """Class and fields of the schedule; empty where there is none."""
        return self.config.get("schedule") or {}

    @property
    def fine_tuned(self) -> bool:
        model = self.config["model"]
        return isinstance(model, dict) and bool(model.get("fine_tuned"))

    @property
    def experiments(self) -> list[Row]:
        """Its names: {"name", "overrides", "title"} each."""
        return self.row["experiments"]

    @property
    def gmacs(self) -> float:
        return self.row["gmacs"]

    @property
    def speed_up(self) -> float | None:
        """Of the compressed over the uncompressed model; None where it was not timed."""
        timed = (self.row.get("throughput") or {}).get("compressed")
        return timed["speed_up"] if timed else None

    def estimate(self, metric: Metric) -> Estimate:
        """A metric with its interval: the row's own, or from the outcomes where images are left out."""
        stored = None if self.skip else self.row["metrics"].get(metric.name)
        return Estimate.of(stored) if stored else metric.estimate(self.images)

    def value(self, metric: str) -> float:
        """A metric by its name."""
        return self.estimate(named(self.task, metric)).value

    @property
    def headline(self) -> Metric:
        """The metric that its task is about."""
        return headline(self.task)

    def comparable(self, other: Measured) -> bool:
        """Whether both are of the same model on the same images in the same arithmetic, whatever the weights."""
        same = all(self.config.get(key) == other.config.get(key) for key in COMPARABLE)
        return same and _architecture(self.config["model"]) == _architecture(other.config["model"])


def _name(value: Any) -> str:
    return value["name"] if isinstance(value, dict) else value


def _architecture(model: Any) -> Any:
    """A model's settings without where its weights come from."""
    return {key: value for key, value in model.items() if key != "fine_tuned"} if isinstance(model, dict) else model


def read(published: str | Path, drafts: str | Path) -> list[Measured]:
    """All finished rows: the published ones and those of this machine."""
    rows = Rows(published, drafts)
    return [Measured(row, partial(rows.outcomes, row)) for row in rows]


def looked_in(published: str | Path, drafts: str | Path) -> str:
    """Where rows are looked for, in words, for somebody who has none."""
    looked = f"rows are looked for in {Path(published).resolve()} and {Path(drafts).resolve()}"
    return f"{looked}; the published ones are in results/rows of a clone: paths.rows=FOLDER"


def of_experiments(rows: Sequence[Measured], names: Sequence[str]) -> list[tuple[str, Measured]]:
    """Pairs (name, row) of the experiments, in the order of ``names``; a sweep gives several of one name."""
    found: list[tuple[str, Measured]] = []
    for name in names:
        found += [(name, m) for m in rows if any(one["name"] == name for one in m.experiments)]
    return found


def uncompressed(rows: Sequence[Measured], like: Measured) -> Measured:
    """The uncompressed row to compare with: of the same weights, else of the model's own rather than others.

    Raises:
        ValueError: it has not been measured.
    """
    found = [m for m in rows if m.method is None and m.comparable(like)]
    found.sort(key=lambda m: (m.fine_tuned, m.config.get("weights") != like.config.get("weights")))
    if not found:
        raise ValueError(f"{like.model} has no uncompressed row: run ttf eval experiment=readings/none first")
    return found[0].without(like.skip)


def nearest_tome(rows: Sequence[Measured], like: Measured) -> Measured | None:
    """ToMe as published (r tokens fewer in every block) at the nearest GMACs; None where there is no such row."""
    found = [m for m in rows if _is_published_tome(m) and m.comparable(like)]
    nearest = min(found, key=lambda m: abs(m.gmacs - like.gmacs), default=None)
    return nearest and nearest.without(like.skip)


def _is_published_tome(m: Measured) -> bool:
    if m.method is None or m.method["class"] != "ToMe":
        return False
    return m.schedule.get("class") == "RemovePerBlock" and m.schedule.get("blocks") is None


def halves(pairs: Sequence[tuple[str, Measured]]) -> list[tuple[str, Measured]]:
    """Rows of a study: those over a first part of the images as they are, those over all without that part."""
    limits = [m.config["limit"] for _, m in pairs]
    part = max((limit for limit in limits if limit), default=0)
    return [(name, m if m.config["limit"] else m.without(part)) for name, m in pairs]


def reading(row: Measured) -> str:
    """Which reading of the equations a row of Token Transforming is, in words; "" for other methods."""
    method = row.method
    if method is None or method["class"] != "TokenTransform":
        return ""
    both = method["isolate"] and method["accumulate"]
    return "class token isolated, sizes carried over" if both else "the literal equations"
