"""Draw a figure from rows alone, its table beside it: ``ttf figure figure=fig4a``."""

from __future__ import annotations

from pathlib import Path

import hydra
from omegaconf import DictConfig

from ttf import cli, experiments
from ttf.commands.table import models_of
from ttf.config_store import CONFIGS
from ttf.errors import MissingError

SPEED = {
    "speed": "efficiency_of_methods",
    "speed_tokens": "efficiency_over_tokens",
    "speed_gpu": "efficiency_on_gpu",
}


def table_of(figure: str) -> str:
    """The table whose rows a figure shows: its own, or one whose file names it under ``scatter``."""
    names = experiments.names_of_tables()
    known = {one: name for name in names for one in (*experiments.contents(name).get("scatter", {}), name)}
    if figure not in known:
        raise ValueError(f"there is no figure {figure!r}: choose one of {', '.join(sorted({*known, *SPEED}))}")
    return known[figure]


def of_speed(cfg: DictConfig, results: Path) -> None:
    """Efficiency of methods, over tokens, or on a GPU; ``make speed`` and ``make speed-gpu`` have the tables."""
    from ttf.report import speed_figures

    path = results / "figures" / f"{cfg.figure}{cfg.suffix}.png"
    getattr(speed_figures, SPEED[cfg.figure])(speed_figures.gather(cfg.figure, cfg.models, results / "speed"), path)
    print(path)


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="figure")
@cli.job
def main(cfg: DictConfig) -> None:
    results = Path(cfg.paths.results)
    if cfg.figure in SPEED:
        return of_speed(cfg, results)
    from ttf.report import Options, render
    from ttf.results.measured import looked_in, read

    options = Options(results, cfg.models, cfg.suffix)
    table, rows = experiments.load(table_of(cfg.figure)), read(cfg.paths.rows, cfg.paths.runs)
    experiments.check_models(table, cfg.models, models_of(table, rows, results))
    try:
        paths = render(table, rows, options)
    except MissingError as error:
        raise MissingError(f"{error}; {looked_in(cfg.paths.rows, cfg.paths.runs)}") from error
    print("\n".join(map(str, paths)))
