"""The best numbers of tokens for a model and a budget: ``ttf search model=vit_mini budget=0.6 images=64``."""

from __future__ import annotations

import hydra
from omegaconf import DictConfig

from ttf import cli
from ttf.config_store import CONFIGS


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="search")
@cli.job
def main(cfg: DictConfig) -> None:
    from ttf.searching.command import searched

    print(searched(cfg))


if __name__ == "__main__":
    cli.run(main)
