"""The main job on the embedded scale, offline: a table and a figure. ``make demo``."""

from __future__ import annotations

from pathlib import Path

import hydra
import torch
from hydra import compose
from omegaconf import DictConfig, open_dict
from rich.console import Console

import ttf
from ttf import cli
from ttf.data.transforms import preprocessing
from ttf.models.weights import load_model
from ttf.results import tables
from ttf.results.figures import informative_tokens
from ttf.results.store import Row
from ttf.tasks.run import Run, execute

METHODS = {"uncompressed": "none", "paper": "paper", "default": "token_transform"}


def _row(cfg: DictConfig, method: DictConfig) -> Row:
    with open_dict(cfg):
        cfg.method = method
    return execute(cfg)


def _figure(cfg: DictConfig, path: Path) -> None:
    run, model = Run(cfg), load_model(cfg.model, cfg.checkpoint, cfg.paths.weights)
    how = preprocessing(model)
    run.set.transform = how.build()
    images = torch.stack([run.set[index][0] for index in run.data.indices[: cfg.figure_images]])
    assert run.reduction is not None
    informative_tokens(images, ttf.trace(ttf.apply(model, **run.reduction), images), how, path)


@hydra.main(version_base="1.3", config_path="../configs", config_name="demo")
def main(cfg: DictConfig) -> None:
    methods = {name: compose("eval", [f"method={choice}"]).method for name, choice in METHODS.items()}
    rows = {name: _row(cfg.copy(), method) for name, method in methods.items()}
    cells = tables.comparison(rows)
    folder = Path(cfg.demo_folder)
    _figure(cfg, folder / "tokens.png")
    (folder / "table.md").write_text(tables.markdown(cells))
    base = rows["uncompressed"]
    title = f"{cfg.model.name}, keep ratio {cfg.ratio}, {base['images']} test images, {base['device']}"
    Console().print(tables.terminal(cells, title), tables.LEGEND)
    print(f"figure: {folder / 'tokens.png'}\ntable:  {folder / 'table.md'}")


if __name__ == "__main__":
    cli.run(main)
