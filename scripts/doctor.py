"""What is installed and found, and what each missing thing costs: ``python scripts/doctor.py``."""

from __future__ import annotations

import hydra
from omegaconf import DictConfig

from ttf import cli
from ttf.doctor import examine, print_findings


@hydra.main(version_base="1.3", config_path="../configs", config_name="eval")
@cli.job
def main(cfg: DictConfig) -> None:
    print_findings(examine(cfg))


if __name__ == "__main__":
    cli.run(main)
