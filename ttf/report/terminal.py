"""Rows for people: on the terminal, and to Weights & Biases."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from ttf.results.store import Row

PERCENT = ("top1", "top5", "agreement", "miou", "aacc", "macc")


def _figure(name: str, metric: dict[str, Any]) -> str:
    low, high = metric["ci95"]
    return (
        f"{metric['value']:.1f} % [{low:.1f}, {high:.1f}]"
        if name in PERCENT
        else f"{metric['value']:.4f} [{low:.4f}, {high:.4f}]"
    )


def print_row(row: Row, console: Console | None = None) -> None:
    """Print one row as a table of two columns."""
    table = Table("measure", "value [95 % interval]", title=f"{row['config']['model']['name']}, row {row['id']}")
    for name, metric in row["metrics"].items():
        table.add_row(name, _figure(name, metric))
    table.add_row("GMACs", f"{row['gmacs']:.3f}")
    table.add_row("parameters", f"{row['params_m']:.2f} M")
    layers = ", ".join(f"block {t['block']}: {t['tokens']}" for t in row["tokens"])
    table.add_row("tokens", layers or "all in every block")
    speed = (row["throughput"] or {}).get("compressed")
    if speed:
        table.add_row("speed-up", f"{speed['speed_up']:.2f}x (batch {row['throughput']['batch_size']})")
    table.add_row(
        "images", f"{row['images']}" + (f", {len(row['bad_images'])} unreadable" if row["bad_images"] else "")
    )
    (console or Console()).print(table)
    if row["bad_images"]:
        (console or Console()).print(f"unreadable, left out: {', '.join(row['bad_images'])}")


def flat(row: Row) -> dict[str, float]:
    """The numbers of a row under plain names, as W&B and data frames want them."""
    numbers = {name: metric["value"] for name, metric in row["metrics"].items()}
    numbers |= {"gmacs": row["gmacs"], "params_m": row["params_m"], "images": row["images"]}
    speed = (row["throughput"] or {}).get("compressed")
    return numbers | ({"speed_up": speed["speed_up"]} if speed else {})


def wandb_run(logger: DictConfig, run_id: str, **options: Any) -> Any:
    """A W&B run, which goes on where it is already there; ``options`` of ``wandb.init``.

    Raises:
        ValueError: W&B cannot be reached and WANDB_MODE=offline is not set.
    """
    import wandb

    places = {"project": logger.project, "entity": logger.entity, "dir": logger.dir}
    try:
        return wandb.init(**places, id=run_id, resume="allow", **options)
    except (wandb.errors.CommError, wandb.errors.UsageError) as error:
        raise ValueError(f"W&B: {error}. Set WANDB_MODE=offline to log to disk") from error


def log_row(row: Row, logger: DictConfig) -> None:
    """Send a row to the configured logger: nothing for "none", a W&B run for "wandb".

    Raises:
        ValueError: W&B cannot be reached and WANDB_MODE=offline is not set.
    """
    if logger.name != "wandb":
        return
    group, name = (row["experiments"] or [None])[0], row["config"]["model"]["name"]
    run = wandb_run(logger, row["id"], group=group, name=name, config=row["config"])
    run.log(flat(row))
    run.finish()
