"""Train or fine-tune a model: ``python scripts/finetune.py experiment=mini/cls``."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import hydra
import torch
from omegaconf import DictConfig
from timm.models.vision_transformer import VisionTransformer

from ttf import cli
from ttf.building import build
from ttf.data.scenes import NUM_CLASSES
from ttf.data.transforms import preprocessing
from ttf.models.weights import load_model, save_weights
from ttf.training import TokenLabelling, Trainer


@hydra.main(version_base="1.3", config_path="../configs", config_name="finetune")
def main(cfg: DictConfig) -> None:
    torch.manual_seed(cfg.train.seed)
    model = load_model(cfg.model, cfg.checkpoint, cfg.paths.weights) if cfg.pretrained else build(cfg.model.network)
    transform = preprocessing(model).build()
    train, test = (build(cfg.data[part], transform=transform) for part in ("train", "test"))
    folder = Path(cfg.output)
    objective = TokenLabelling(cast(VisionTransformer, model), NUM_CLASSES + 1)
    trainer = Trainer(model, objective, train, test, build(cfg.train), folder)
    trainer.resume()
    rows = trainer.fit()
    save_weights(model, folder / f"{cfg.model.name}.safetensors", half=True)
    print(f"top-1 {rows[-1]['top1']:.1f} %, weights and log in {folder}")


if __name__ == "__main__":
    cli.run(main)
