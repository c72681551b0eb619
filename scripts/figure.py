"""Draw a figure from rows alone, its table beside it: ``python scripts/figure.py figure=fig4a``."""

from __future__ import annotations

from pathlib import Path

import hydra
from omegaconf import DictConfig

from ttf import cli, experiments

SPEED = {"speed": "efficiency_of_methods", "speed_tokens": "efficiency_over_tokens"}


def table_of(figure: str) -> str:
    """The table whose rows a figure shows: its own, or one whose file names it under ``scatter``."""
    names = experiments.names_of_tables()
    return next((name for name in names if figure in experiments.contents(name).get("scatter", {})), figure)


def of_speed(cfg: DictConfig, results: Path) -> None:
    """Efficiency of methods, or over tokens; ``make speed`` has the tables."""
    from ttf.report import speed_figures

    path = results / "figures" / f"{cfg.figure}{cfg.suffix}.png"
    getattr(speed_figures, SPEED[cfg.figure])(speed_figures.gather(cfg.figure, cfg.models, results / "speed"), path)
    print(path)


@hydra.main(version_base="1.3", config_path="../configs", config_name="figure")
@cli.job
def main(cfg: DictConfig) -> None:
    results = Path(cfg.paths.results)
    if cfg.figure in SPEED:
        return of_speed(cfg, results)
    from ttf.report import Options, render
    from ttf.results.measured import read

    options = Options(results, cfg.models, cfg.suffix)
    for path in render(experiments.load(table_of(cfg.figure)), read(cfg.paths.rows, cfg.paths.runs), options):
        print(path)


if __name__ == "__main__":
    cli.run(main)
