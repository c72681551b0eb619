"""Render a table, with its figures, from rows alone: ``ttf table table=table6``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from omegaconf import DictConfig

from ttf import cli, experiments
from ttf.config_store import CONFIGS
from ttf.errors import MissingError
from ttf.experiments import Planned, Table

if TYPE_CHECKING:
    from ttf.results.measured import Measured

PLACES = ("imagenet", "weights", "downloads", "results")


def models_of(table: Table, rows: Sequence[Measured], results: Path) -> set[str]:
    """Models that a table or figure has something of: rows, counted costs, or a line of the paper."""
    from ttf.results.costs import read
    from ttf.results.measured import of_experiments

    measured = {m.model for _, m in of_experiments(rows, [row.name for row in table.rows])}
    counted = {str(line["model"]) for line in read(results / "speed" / f"{table.name}.csv")}
    return measured | counted | {str(row.paper["model"]) for row in table.rows if "model" in row.paper}


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="table")
@cli.job
def main(cfg: DictConfig) -> None:
    from ttf.report import Options, render  # torch comes after the settings are checked
    from ttf.results.measured import looked_in, read
    from ttf.tasks.availability import ADVICE, Machine

    machine = Machine()
    places = [f"paths.{name}={cfg.paths[name]}" for name in PLACES if cfg.paths[name] is not None]

    def missing(experiment: str) -> str:
        return machine.missing(experiments.composed(Planned(experiment, "", ()), places))

    options = Options(Path(cfg.paths.results), cfg.models, cfg.suffix, missing, ADVICE)
    table, rows = experiments.load(cfg.table), read(cfg.paths.rows, cfg.paths.runs)
    experiments.check_models(table, cfg.models, models_of(table, rows, options.results))
    try:
        paths = render(table, rows, options)
    except MissingError as error:
        raise MissingError(f"{error}; {looked_in(cfg.paths.rows, cfg.paths.runs)}") from error
    print("\n".join(map(str, paths)))
