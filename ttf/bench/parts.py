"""Parts of a vision-language model that are timed by themselves: its tower, a prefill, a whole answer."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig
from torch import Tensor, nn

import ttf
from ttf import api
from ttf.tasks.vqa import Part

PARTS = ("tower", "prefill", "answer")


def check(cfg: DictConfig) -> None:
    """Raise ``ValueError`` for an unknown part, a model without parts, or a mode that runs whole models alone."""
    unknown = [part for part in cfg.parts or [] if part not in PARTS]
    if unknown:
        raise ValueError(f"parts must be of {', '.join(PARTS)}, got {unknown[0]!r}")
    if cfg.parts and "vqa" not in cfg.model.tasks:
        raise ValueError(f"parts are those of vision-language models, and {cfg.model.name} is none: leave parts out")
    if cfg.parts and list(cfg.modes) != ["eager"]:
        raise ValueError("parts are timed in modes=[eager] alone")


def part(model: nn.Module, name: str | None) -> nn.Module:
    """A part of a ``VisionLanguageModel`` as a module from images; None: the model, which is a prefill.

    The tower ends at the tokens that LLaVA takes. An answer is greedy and has ``answer_tokens`` words, of which
    none ends it, so that all ways of a benchmark say as many.
    """
    own: Any = model
    if name == "tower":
        return Part(model, own.selected)
    return Part(model, own.continued) if name == "answer" else model


def cost(model: nn.Module, images: Tensor, name: str) -> dict[str, float]:
    """GMACs of a part an image; the mean of all images where the number of tokens depends on these.

    Args:
        model: a ``VisionLanguageModel``, compressed or not; on shapes alone, too.
        images: (B, 3, S, S).
        name: of ``PARTS``.
    """
    own: Any = model
    plan = api.plan(model)
    sample = images if plan is not None and plan.method.adaptive else images[:1]
    counted = Part(model, own.step_by_step) if name == "answer" else part(model, name)
    return {"gmacs": sum(ttf.measure.gmacs(counted, one.shape, one) for one in sample.split(1)) / len(sample)}
