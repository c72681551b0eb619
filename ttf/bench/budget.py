"""Budget-matched entries, by counting: which r of ToMe, which keep ratio of EViT has the GMACs of ours?"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ttf.bench.counting import Shapes
from ttf.bench.entries import OPEN, Benchmark, Entry
from ttf.budget import nearest

FOUND = ("ratio", "schedule.ratio", "schedule.r")


def _with(options: dict[str, Any], name: str, value: float) -> dict[str, Any]:
    """Arguments of ``ttf.apply`` with another ratio or r, which may be one of the schedule's."""
    if name in options:
        return {**options, name: value}
    return {**options, "schedule": replace(options["schedule"], **{name: value})}


def _matched(entry: Entry, shapes: Shapes, target: float) -> Entry:
    """An entry with its open override found.

    Raises:
        ValueError: an override that is not found by counting, or several.
    """
    names = [word.removesuffix(OPEN) for word in entry.command.split() if word.endswith(OPEN)]
    if len(names) != 1 or names[0] not in FOUND or entry.is_unfitted:
        raise ValueError(f"{' or '.join(f'{name}=?' for name in FOUND)} is found by counting: {entry.command!r}")
    name, patches, base = names[0].removeprefix("schedule."), shapes.patches, dict(entry.options or {})
    # a ratio is a whole number of tokens at the first reduction; no method merges more than half at once
    first, last, unit = (1, patches, patches) if name == "ratio" else (0, patches // 2, 1)

    def options(number: int) -> dict[str, Any]:
        return _with(base, name, number if unit == 1 else number / unit)

    number = nearest(lambda candidate: shapes.gmacs(options(candidate)), first, last, target)
    return replace(entry, title=entry.title.replace(OPEN, f"={number / unit:.4g}"), options=options(number))


def reference(benchmark: Benchmark) -> Entry | None:
    """Whose multiply-accumulates the open entries shall have; None where none is open.

    Raises:
        ValueError: all of them are open.
    """
    if not any(entry.is_open for entry in benchmark.entries):
        return None
    fixed = next((entry for entry in benchmark.entries if entry.options and not entry.is_open), None)
    if fixed is None:
        raise ValueError("=? asks for the cost of another experiment: name one without =? as well")
    return fixed


def matched(benchmark: Benchmark) -> Benchmark:
    """The benchmark with the open overrides of its entries filled in, at the nearest GMACs to those of the reference.

    Raises:
        ValueError: see ``reference``; a method whose number of tokens depends on the image.
    """
    fixed = reference(benchmark)
    if fixed is None:
        return benchmark
    shapes = Shapes(benchmark.model.network)
    target = shapes.gmacs(fixed.options)
    entries = [_matched(entry, shapes, target) if entry.is_open else entry for entry in benchmark.entries]
    return replace(benchmark, entries=entries)
