"""Render a table, with its figures, from rows alone: ``ttf table table=table6``."""

from __future__ import annotations

from pathlib import Path

import hydra
from omegaconf import DictConfig

from ttf import cli, experiments
from ttf.config_store import CONFIGS
from ttf.errors import MissingError
from ttf.experiments import Planned

PLACES = ("imagenet", "weights", "downloads", "results")


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
    try:
        paths = render(experiments.load(cfg.table), read(cfg.paths.rows, cfg.paths.runs), options)
    except MissingError as error:
        raise MissingError(f"{error}; {looked_in(cfg.paths.rows, cfg.paths.runs)}") from error
    print("\n".join(map(str, paths)))
