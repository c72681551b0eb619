"""Multiply-accumulates of an experiment from shapes alone: neither weights nor data, and no arithmetic."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch._subclasses.fake_tensor import FakeTensorMode

import ttf
from ttf.building import build
from ttf.results.speed import Row
from ttf.tasks.options import check_pair, reduction


def counted(cfg: DictConfig) -> Row:
    """One line: experiment, model, setting and GMACs of one forward pass on an image (or window) of the model's size.

    Args:
        cfg: the composed config of ``scripts/eval.py`` for an experiment.

    Raises:
        ValueError: a method that needs images (to calibrate, or because its number of tokens depends on them), or a
            model that is not for the task.
    """
    check_pair(cfg)
    options = reduction(cfg)
    if options is not None and "calibrate" in options:
        raise ValueError(f"{cfg.name} cannot be counted from shapes: it needs images to calibrate on")
    with FakeTensorMode():
        model: Any = build(cfg.model.network).eval()
        if options is not None:
            ttf.apply(model, **options)
        plan = ttf.api.plan(model)
        if plan is not None and plan.method.adaptive:
            raise ValueError(f"{cfg.name} cannot be counted from shapes: its number of tokens depends on the image")
        gmacs = ttf.measure.gmacs(model, model.pretrained_cfg["input_size"])
    blocks = OmegaConf.to_container(cfg.blocks) if cfg.blocks else ""
    setting = {"ratio": cfg.ratio, "blocks": str(blocks)} if options else {"ratio": "", "blocks": ""}
    return {"experiment": cfg.name, "title": cfg.title, "model": cfg.model.name, **setting, "gmacs": round(gmacs, 4)}
