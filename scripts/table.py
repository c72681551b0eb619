"""Render a table, with its figures, from rows alone: ``python scripts/table.py table=table6``."""

from __future__ import annotations

from pathlib import Path

import hydra
from hydra import compose
from omegaconf import DictConfig

from ttf import cli, experiments

PLACES = ("imagenet", "weights", "downloads", "results")


@hydra.main(version_base="1.3", config_path="../configs", config_name="table")
@cli.job
def main(cfg: DictConfig) -> None:
    from ttf.report import Options, render  # torch comes after the settings are checked
    from ttf.results.measured import read
    from ttf.tasks.availability import ADVICE, Machine

    machine = Machine()
    places = [f"paths.{name}={cfg.paths[name]}" for name in PLACES if cfg.paths[name] is not None]

    def missing(experiment: str) -> str:
        return machine.missing(compose("eval", [f"experiment={experiment}", *places]))

    options = Options(Path(cfg.paths.results), cfg.models, cfg.suffix, missing, ADVICE)
    for path in render(experiments.load(cfg.table), read(cfg.paths.rows, cfg.paths.runs), options):
        print(path)


if __name__ == "__main__":
    cli.run(main)
