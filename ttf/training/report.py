"""Rows of a training run to Weights & Biases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from omegaconf import DictConfig

from ttf.report.wandb import explained, wandb_run

Report = Callable[[dict[str, float]], None]


def reporter(logger: DictConfig, name: str, run_id: str, config: dict[str, Any]) -> Report | None:
    """A function that logs a row of the training log, loss, lr and score at a step; None where the logger is "none".

    Args:
        logger: config group ``logger``.
        name: of the run.
        run_id: of the run, which continues where it is already there.
        config: shown beside the curves.

    Raises:
        ValueError: W&B cannot be reached and WANDB_MODE=offline is not set.
    """
    if logger.name != "wandb":
        return None
    run = wandb_run(logger, run_id, name=name, config=config, reinit="finish_previous")

    def report(row: dict[str, float]) -> None:
        with explained(logger):
            run.log({k: v for k, v in row.items() if k != "step"}, step=int(row["step"]))

    return report
