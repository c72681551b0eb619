"""Train or fine-tune a model: ``ttf finetune experiment=table1/deit_s_finetune_0.7``."""

from __future__ import annotations

import hydra
from omegaconf import DictConfig, OmegaConf

from ttf import cli
from ttf.config_store import CONFIGS


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="finetune")
@cli.job
def main(cfg: DictConfig) -> None:
    from ttf.training.run import FineTuning

    if "augment" not in cfg:  # ~augment, as Hydra has it for augment=null
        OmegaConf.update(cfg, "augment", None, force_add=True)
    training = FineTuning(cfg)
    outcome = training.run()
    if training.engine.is_main_process:
        name = training.kind.score.name
        figures = ", ".join(f"{way.replace('_', '-')} {value:.2f} %" for way, value in outcome[name].items())
        print(f"{name} on {outcome['images']} images: {figures}. Weights, log and summary are in {training.folder}")
