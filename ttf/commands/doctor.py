"""What is installed and found, and what each missing thing costs: ``ttf doctor``."""

from __future__ import annotations

import hydra
from omegaconf import DictConfig

from ttf import cli
from ttf.config_store import CONFIGS


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="doctor")
@cli.job
def main(cfg: DictConfig) -> None:
    from ttf.doctor import examine, print_findings  # torch comes after the settings are checked

    print_findings(examine(cfg))
