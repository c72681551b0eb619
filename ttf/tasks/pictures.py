"""What pictures of predictions share: a column for each method, and the patches whose tokens were left."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

import ttf
from ttf.bench.entries import experiment
from ttf.models.weights import load_model
from ttf.tasks.base import Task
from ttf.tasks.options import check_pair, make_task, reduction

T = TypeVar("T", bound=Task)
E = TypeVar("E")
W = TypeVar("W")


def chosen(cfg: DictConfig) -> dict[str, tuple[DictConfig, dict[str, Any]]]:
    """Configs and arguments of ``ttf.apply`` by title, of the experiments in ``cfg.ways``; without these of ``cfg``.

    Raises:
        ValueError: nothing is compressed, or a method needs images to calibrate on.
    """
    if cfg.ways is None:
        title = cfg.title or f"{cfg.method.method}, {cfg.ratio}"
        return {title: (cfg, _checked(cfg.method.method, reduction(cfg)))}
    found = {}
    for words in cfg.ways:
        name, own, options = experiment(words, cfg.model.name)
        found[own.title or name] = (own, _checked(f"experiment {name}", options))
    return found


def ways(cfg: DictConfig) -> dict[str, dict[str, Any]]:
    """Arguments of ``ttf.apply`` by title. Raises ``ValueError``, see ``chosen``."""
    return {title: options for title, (_, options) in chosen(cfg).items()}


def drawn(
    cfg: DictConfig,
    kind: type[T],
    example: Callable[[T, nn.Module, int, Mapping[str, W]], E],
    positions: Sequence[int] | None,
    read: Callable[[DictConfig], Mapping[str, W]],
) -> tuple[T, list[tuple[int, E]]]:
    """The config's task, and positions of its shuffle with what is drawn of the images there.

    Args:
        cfg: of ``ttf visualize``, ``ttf masks`` or ``ttf answers``.
        kind: class of the task.
        example: what is drawn of one image, from the task, the model, the position and the methods.
        positions: None: all of them.
        read: the methods of a config, such as ``ways``.

    Raises:
        ValueError: the model is not for the task, there is no such image, or see ``chosen``.
    """
    check_pair(cfg)
    task, methods = make_task(cfg), read(cfg)
    if not isinstance(task, kind):
        raise ValueError(f"this picture is not of task={cfg.task.name}: leave task out, or choose another command")
    task.check_positions(positions or ())
    model = load_model(cfg.model, cfg.checkpoint, cfg.paths.weights, cfg.paths.downloads)
    task.adopt(model)
    wanted = range(len(task.data)) if positions is None else positions
    return task, [(position, example(task, model, position, methods)) for position in wanted]


def item_at(task: Task, position: int) -> Any:
    """What a task's data set has at a position of the shuffle. Raises ``ValueError``: the image cannot be read."""
    _, item = task.data[position]
    if isinstance(item, ValueError):
        raise item
    return item


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
    return left_behind(layers[-1]) if layers else None


def left_behind(layer: Any) -> np.ndarray:
    """The patches that the tokens behind a reducing layer grew from, see ``ttf.trace``; (rows, columns) bool."""
    tokens = (layer.sizes[0, layer.prefix :] > 0).nonzero()[:, 0] + layer.prefix
    patches = layer.origin[0, tokens] - layer.prefix
    flat = torch.zeros(layer.grid[0] * layer.grid[1], dtype=torch.bool)
    flat[patches[patches >= 0].cpu()] = True
    return flat.reshape(layer.grid).numpy()
