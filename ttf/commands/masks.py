"""Predicted masks side by side: ``ttf masks model=segmenter_ti_camvid limit=3``."""

from __future__ import annotations

from pathlib import Path

import hydra
from omegaconf import DictConfig

from ttf import cli
from ttf.config_store import CONFIGS


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="masks")
@cli.job
def main(cfg: DictConfig) -> None:
    from ttf.report.figures import check_figure
    from ttf.report.masks import figure
    from ttf.tasks.masks import examples

    check_figure(Path(cfg.figure))
    shown, data = examples(cfg, cfg.pick)
    figure(shown, data.classes, data.palette, Path(cfg.figure))
    print(cfg.figure)
