"""Informative tokens and rows of W as a picture: ``python scripts/visualize.py model=vit_ti_augreg limit=4``."""

from __future__ import annotations

from pathlib import Path

import hydra
import torch
from omegaconf import DictConfig

import ttf
from ttf import cli
from ttf.data.transforms import preprocessing
from ttf.models.weights import load_model
from ttf.results.figures import informative_tokens
from ttf.tasks.run import Run


@hydra.main(version_base="1.3", config_path="../configs", config_name="visualize")
def main(cfg: DictConfig) -> None:
    run = Run(cfg)
    if run.reduction is None:
        raise ValueError("method=none transforms nothing: choose a method")
    model = load_model(cfg.model, cfg.checkpoint, cfg.paths.weights)
    how = preprocessing(model)
    run.set.transform = how.build()
    chosen = run.data.indices if cfg.pick is None else [run.data.indices[position] for position in cfg.pick]
    images = torch.stack([run.set[index][0] for index in chosen])
    path = Path(cfg.figure)
    informative_tokens(images, ttf.trace(ttf.apply(model, **run.reduction), images), how, path)
    print(path)


if __name__ == "__main__":
    cli.run(main)
