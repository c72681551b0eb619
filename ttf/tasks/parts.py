"""Rows on the images behind the first ones, taken from a finished row on all of them."""

from __future__ import annotations

from torch import Tensor

from ttf.results.rows import Rows
from ttf.results.store import Row, signature
from ttf.tasks.base import Task
from ttf.tasks.identity import key_of


def part_of(task: Task, config: Row, names: list[Row], rows: Rows) -> tuple[Row, dict[str, Tensor]] | None:
    """The row of a run that leaves out the first images, where the same run on all of them has finished.

    Its outcomes are those of the other row image by image, its metrics are computed anew; costs and where the numbers
    come from stay those of the other row, which it names (``part_of``).

    Args:
        task: of the run.
        config: its whole identity.
        names: the experiments that this is.
        rows: all rows.

    Returns:
        The row and its outcomes; None where every image has to be measured.
    """
    skip = config.get("skip")
    if not skip or config["limit"] is not None:
        return None
    name = signature({key: value for key, value in config.items() if key != "skip"})
    whole = next((row for row in rows if row["id"] == name and not row["bad_images"]), None)
    if whole is None:
        return None
    outcomes = {key: values[skip:].clone() for key, values in rows.outcomes(whole).items()}
    kept = {key: value for key, value in whole.items() if key not in ("outcomes", "experiments")}
    own = {
        "id": signature(config),
        "key": key_of(config),
        "config": config,
        "experiments": names,
        "metrics": task.metrics(outcomes),
        "images": whole["images"] - skip,
        "part_of": whole["id"],
    }
    return kept | own, outcomes
