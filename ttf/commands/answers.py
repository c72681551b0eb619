"""Questions, answers and the tokens that were left: ``ttf answers model=llava_mini limit=3``."""

from __future__ import annotations

from pathlib import Path

import hydra
from omegaconf import DictConfig

from ttf import cli
from ttf.config_store import CONFIGS


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="answers")
@cli.job
def main(cfg: DictConfig) -> None:
    from ttf.report.figures import check_figure
    from ttf.tasks.drawn_answers import picture

    check_figure(Path(cfg.figure))
    print(*picture(cfg, Path(cfg.figure), cfg.pick), sep="\n")
