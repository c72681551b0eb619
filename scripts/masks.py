"""Predicted masks side by side: ``python scripts/masks.py model=segmenter_ti_camvid limit=3``."""

from __future__ import annotations

from pathlib import Path

import hydra
from omegaconf import DictConfig

from ttf import cli


@hydra.main(version_base="1.3", config_path="../configs", config_name="masks")
@cli.job
def main(cfg: DictConfig) -> None:
    from ttf.report.figures import check_figure
    from ttf.report.masks import figure
    from ttf.tasks.masks import examples

    check_figure(Path(cfg.figure))
    shown, data = examples(cfg, cfg.pick)
    figure(shown, data.classes, data.palette, Path(cfg.figure))
    print(cfg.figure)


if __name__ == "__main__":
    cli.run(main)
