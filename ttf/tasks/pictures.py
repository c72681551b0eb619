"""What pictures of predictions share: a column for each method, and the patches whose tokens were left."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

import ttf
from ttf.bench.entries import experiment
from ttf.tasks.options import reduction


def ways(cfg: DictConfig) -> dict[str, dict[str, Any]]:
    """Arguments of ``ttf.apply`` by title, of the experiments in ``cfg.ways``; without these of the config itself.

    Raises:
        ValueError: nothing is compressed, or a method needs images to calibrate on.
    """
    if cfg.ways is None:
        return {cfg.title or f"{cfg.method.method}, {cfg.ratio}": _checked(cfg.method.method, reduction(cfg))}
    found = {}
    for words in cfg.ways:
        name, chosen, options = experiment(words, cfg.model.name)
        found[chosen.title or name] = _checked(f"experiment {name}", options)
    return found


def _checked(name: str, options: dict[str, Any] | None) -> dict[str, Any]:
    if options is None or "calibrate" in options:
        raise ValueError(f"{name} has no picture of its own: choose a method that compresses without images")
    return options


def left(model: Any, image: Tensor) -> np.ndarray | None:
    """The patches that a compressed model's tokens grew from in its last reducing layer, (rows, columns) bool.

    None where all tokens leave every block, as with ToMe's dense port.

    Args:
        model: after ``ttf.apply``.
        image: (1, 3, H, W), preprocessed.
    """
    layers = ttf.trace(model, image)
    if not layers:
        return None
    layer = layers[-1]
    tokens = (layer.sizes[0, layer.prefix :] > 0).nonzero()[:, 0] + layer.prefix
    patches = layer.origin[0, tokens] - layer.prefix
    flat = torch.zeros(layer.grid[0] * layer.grid[1], dtype=torch.bool)
    flat[patches[patches >= 0].cpu()] = True
    return flat.reshape(layer.grid).numpy()
