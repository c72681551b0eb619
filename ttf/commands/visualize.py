"""Informative tokens and rows of W as a picture: ``ttf visualize model=vit_ti_augreg limit=4``."""

from __future__ import annotations

from pathlib import Path

import hydra
from omegaconf import DictConfig

from ttf import cli
from ttf.config_store import CONFIGS


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="visualize")
@cli.job
def main(cfg: DictConfig) -> None:
    from ttf.report.figures import check_figure
    from ttf.tasks.run import Run

    path = Path(cfg.figure)
    check_figure(path)
    run = Run(cfg)
    run.picture(path, range(len(run.task.data)) if cfg.pick is None else cfg.pick)
    print(path)
