"""Rows to Weights & Biases."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from omegaconf import DictConfig

from ttf.report.terminal import flat
from ttf.results.store import Row


@contextmanager
def explained(logger: DictConfig) -> Iterator[None]:
    """What W&B raises as one line that says what to do, a ``ValueError``."""
    import wandb

    try:
        yield
    except (wandb.errors.CommError, wandb.errors.UsageError) as error:
        said = str(error).strip().rstrip(".")
        raise ValueError(f"W&B: {said}. Set WANDB_MODE=offline to log to disk") from error
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(
            f"W&B cannot write in {logger.dir} ({reason}): free some space, or logger.dir=FOLDER; results are kept"
        ) from error


def wandb_run(logger: DictConfig, run_id: str, **options: Any) -> Any:
    """A W&B run, which goes on where it is already there; ``options`` of ``wandb.init``.

    Raises:
        ValueError: W&B cannot be reached and WANDB_MODE=offline is not set, or its folder cannot be written.
    """
    import wandb

    places = {"project": logger.project, "entity": logger.entity, "dir": logger.dir}
    with explained(logger):
        return wandb.init(**places, id=run_id, resume="allow", **options)


def log_row(row: Row, logger: DictConfig) -> None:
    """Send a row to the configured logger: nothing for "none", a W&B run for "wandb".

    Raises:
        ValueError: see ``wandb_run``.
    """
    if logger.name != "wandb":
        return
    first, model = (row["experiments"] or [{"name": None}])[0], row["config"]["model"]
    name = model["name"] if isinstance(model, dict) else model
    run = wandb_run(logger, row["id"], group=first["name"], name=name, config=row["config"])
    with explained(logger):
        run.log(flat(row))
        run.finish()
