"""Multiply-accumulates from shapes alone: neither weights nor data, and no arithmetic."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from torch._subclasses.fake_tensor import FakeTensorMode

import ttf
from ttf import hosts
from ttf.bench.arithmetic import arithmetic
from ttf.bench.fitting import IMAGES, fit, random_model
from ttf.bench.parts import cost
from ttf.building import build
from ttf.data.transforms import preprocessing
from ttf.results.costs import Row
from ttf.tasks.options import check_pair, reduction


def _empty(network: DictConfig) -> Any:
    """The model without memory for its weights, or with it where it computes some of them (PS-ViT)."""
    try:
        with torch.device("meta"):
            return build(network)
    except InstantiationException:
        return build(network)


class Shapes:
    """A model that costs nothing to run: its tensors have shapes and no values.

    Args:
        network: node of a config whose ``_target_`` makes the model.

    Attributes:
        size: of its input, (3, H, W) in pixels.
        patches: number of patch tokens that enter its blocks.
    """

    def __init__(self, network: DictConfig) -> None:
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        model = _empty(network)
        with self._mode:
            self._model = model.eval().to_empty(device="cpu")
        self.size = preprocessing(self._model).input_size
        self.patches = math.prod(hosts.find(self._model).grid(self._model, self.size[1:]))

    def parts(self) -> dict[str, float]:
        """GMACs of the parts of a vision-language model, as it was counted last; none of other models."""
        if not hasattr(self._model, "features"):
            return {}
        from ttf.tasks.vqa import costs  # the parts are those of its rows

        with self._mode:
            found = costs(self._model, torch.zeros(1, *self.size))
        return {name: round(value, 4) for name, value in found.items()}

    def arithmetic(self, options: dict[str, Any] | None, part: str | None = None) -> Mapping[str, float | str]:
        """``ttf.bench.arithmetic`` of one image.

        Args:
            options: arguments of ``ttf.apply``; None: uncompressed.
            part: of a vision-language model, see ``ttf.bench.parts``; None: all of it.
        """
        with self._mode:
            model, image = ttf.remove(self._model), torch.zeros(1, *self.size)
            compressed = model if options is None else ttf.apply(model, **options)
            return cost(compressed, image, part) if part else arithmetic(compressed, image)

    def gmacs(self, options: dict[str, Any] | None) -> float:
        """GMACs of one image or window.

        Args:
            options: arguments of ``ttf.apply``; None: uncompressed.

        Raises:
            ValueError: the number of tokens depends on the image.
        """
        with self._mode:
            if options is None:
                return ttf.measure.gmacs(ttf.remove(self._model), self.size)
            plan = ttf.api.plan(ttf.apply(self._model, **options))
            if plan is not None and plan.method.adaptive:
                raise ValueError("cannot be counted from shapes: its number of tokens depends on the image")
            return ttf.measure.gmacs(self._model, self.size)


def _options(cfg: DictConfig) -> dict[str, Any] | None:
    """Arguments of ``ttf.apply``; a method that is fitted to its model is fitted to a random one."""
    options = reduction(cfg)
    if options is None or "calibrate" not in options:
        return options
    return fit(*random_model(cfg.model.network, cfg.seed), options)


def _setting(cfg: DictConfig) -> Row:
    """What tells the counts of an experiment apart: its keep ratio (a fitted method's keep rate) and its blocks."""
    if cfg.method.get("method") == "none":
        return {"ratio": "", "blocks": ""}
    if cfg.method.get("calibrate"):
        return {"ratio": cfg.method.calibrate.keep_rate, "blocks": "", "fitted_on": f"{IMAGES} random images"}
    return {"ratio": cfg.ratio, "blocks": str(OmegaConf.to_container(cfg.blocks)) if cfg.blocks else ""}


def counted(cfg: DictConfig) -> Row:
    """One line: experiment, model, setting and GMACs of one forward pass on an image (or window) of the model's size.

    Args:
        cfg: the composed config of ``scripts/eval.py`` for an experiment.

    Raises:
        ValueError: a method whose number of tokens depends on the image, or a model that is not for the task.
    """
    check_pair(cfg)
    try:
        shapes = Shapes(cfg.model.get("counted") or cfg.model.network)
        gmacs = shapes.gmacs(_options(cfg))
    except ValueError as error:
        raise ValueError(f"{cfg.name}: {error}") from error
    known = {"experiment": cfg.name, "title": cfg.title, "model": cfg.model.name}
    return {**known, **_setting(cfg), "gmacs": round(gmacs, 4), **shapes.parts()}
