"""Train or fine-tune a model: ``python scripts/finetune.py experiment=table1/deit_s_finetune_0.7``."""

from __future__ import annotations

import hydra
from omegaconf import DictConfig

from ttf import cli
from ttf.training.run import FineTuning


@hydra.main(version_base="1.3", config_path="../configs", config_name="finetune")
def main(cfg: DictConfig) -> None:
    training = FineTuning(cfg)
    outcome = training.run()
    if training.engine.is_main_process:
        top1 = ", ".join(f"{name.replace('_', '-')} {value:.2f} %" for name, value in outcome["top1"].items())
        print(f"top-1 on {outcome['images']} images: {top1}. Weights, log and summary are in {training.folder}")


if __name__ == "__main__":
    cli.run(main)
