"""W of many methods side by side for one photograph: ``ttf matrices model=vit_ti_augreg pick=2``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

import ttf
from ttf import cli
from ttf.config_store import CONFIGS


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="matrices")
@cli.job
def main(cfg: DictConfig) -> None:
    from ttf.report.figures import picture
    from ttf.report.matrices import matrices
    from ttf.tasks.run import Run

    model, images, how = Run(cfg).photographs([cfg.pick])
    groups: Any = OmegaConf.to_container(cfg.groups, resolve=True)

    def layer(options: dict[str, Any]) -> ttf.api.LayerTrace:
        with ttf.applied(model, ratio=cfg.ratio, blocks=[cfg.block], **options):
            return ttf.trace(model, images)[0]

    layers = {heading: {name: layer(o) for name, o in methods.items()} for heading, methods in groups.items()}
    words = f"{cfg.model.name}, block {cfg.block}, keep ratio {cfg.ratio}"
    path = Path(cfg.figures) / f"matrices{cfg.suffix}.png"
    matrices(layers, picture(images[0], how), words, path, cfg.columns)
    print(path)
