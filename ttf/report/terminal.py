"""Rows for people, on the terminal, and as plain numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

from ttf.metrics import Estimate, Metric, of_task
from ttf.results.store import Row


def _name(value: Any) -> str:
    return value["name"] if isinstance(value, dict) else value


def _estimates(row: Row) -> Iterator[tuple[Metric, Estimate]]:
    """The metrics of the row's task that it has, as declared."""
    for metric in of_task(_name(row["config"]["task"])):
        if metric.name in row["metrics"]:
            yield metric, Estimate.of(row["metrics"][metric.name])


def print_row(row: Row, console: Console | None = None) -> None:
    """Print one row as a table of two columns."""
    table = Table("measure", "value [95 % interval]", title=f"{_name(row['config']['model'])}, row {row['id']}")
    for metric, estimate in _estimates(row):
        value, low, high = (metric.text(number) for number in (estimate.value, estimate.low, estimate.high))
        interval = f" [{low}, {high}]" if low and high else ""
        table.add_row(metric.name, f"{value} {metric.unit}".strip() + interval if value else "none")
    table.add_row("GMACs", f"{row['gmacs']:.3f}")
    table.add_row("parameters", f"{row['params_m']:.2f} M")
    layers = ", ".join(f"block {t['block']}: {t['tokens']}" for t in row["tokens"])
    table.add_row("tokens", layers or "all in every block")
    speed = (row["throughput"] or {}).get("compressed")
    if speed:
        table.add_row("speed-up", f"{speed['speed_up']:.2f}x (batch {row['throughput']['batch_size']})")
    for part, speeds in (row["throughput"] or {}).get("parts", {}).items():
        if "compressed" in speeds:
            table.add_row(f"speed-up, {part}", f"{speeds['compressed']['speed_up']:.2f}x")
    bad = row["bad_images"]
    table.add_row("images", f"{row['images']}" + (f", {len(bad)} unreadable" if bad else ""))
    (console or Console()).print(table)
    if bad:
        (console or Console()).print(f"unreadable, left out: {', '.join(bad)}")


def flat(row: Row) -> dict[str, float]:
    """The numbers of a row under plain names, as W&B and data frames want them."""
    numbers = {metric.name: estimate.value for metric, estimate in _estimates(row)}
    numbers |= {"gmacs": row["gmacs"], "params_m": row["params_m"], "images": row["images"]}
    speed = (row["throughput"] or {}).get("compressed")
    return numbers | ({"speed_up": speed["speed_up"]} if speed else {})
