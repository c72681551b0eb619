"""What a method does, as a picture: ``ttf visualize model=vit_ti_augreg limit=4``.

Of classifiers informative tokens and rows of W; predictions side by side of depth models (``task=depth model=dpt_ti``),
detectors (``task=det model=vitdet_ti``) and vision-language models (``task=vqa model=llava_mini``).
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import hydra
from omegaconf import DictConfig

from ttf import cli
from ttf.config_store import CONFIGS

SIDE_BY_SIDE = {"depth": "ttf.tasks.depth_maps", "det": "ttf.tasks.drawn_boxes", "vqa": "ttf.tasks.drawn_answers"}


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="visualize")
@cli.job
def main(cfg: DictConfig) -> None:
    from ttf.report.figures import check_figure
    from ttf.tasks.run import Run

    path = Path(cfg.figure)
    check_figure(path)
    if cfg.task.name in SIDE_BY_SIDE:
        picture = import_module(SIDE_BY_SIDE[cfg.task.name]).picture
        print(*picture(cfg, path, cfg.pick), sep="\n")
        return
    run = Run(cfg)
    run.picture(path, range(len(run.task.data)) if cfg.pick is None else cfg.pick)
    print(path)
