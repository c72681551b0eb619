"""Entry points of torch.hub: ``torch.hub.load(CLONE, "compressed", "vit_mini", ratio=0.7, source="local")``.

``torch.hub.list`` lists them; ``compressed`` takes any model of ``configs/models.yaml``.
"""

from __future__ import annotations

from typing import Any

from torch import nn

dependencies = ["torch", "torchvision", "timm", "hydra", "omegaconf", "safetensors", "huggingface_hub"]


def compressed(
    name: str, ratio: float = 0.7, checkpoint: str | None = None, weights: str | None = None, **options: Any
) -> nn.Module:
    """A model with its trained weights, compressed; in evaluation mode.

    Args:
        name: of ``configs/models.yaml``, such as "deit_s" (weights from the hub) or "vit_mini" (embedded).
        ratio: keep ratio in (0, 1] of the patch tokens at each reducing block; 1 leaves the model as it is.
        checkpoint: a file with weights instead of the model's own.
        weights: a folder with files named after timm's tags, which is looked into first.
        **options: of ``ttf.apply``: method, blocks, schedule and so on.

    Raises:
        ValueError: there is no such model, no weights to be had, or an option does not fit.
    """
    import ttf
    from ttf.config_store import model
    from ttf.models.weights import load_model

    return ttf.apply(load_model(model(name), checkpoint, weights), ratio=ratio, **options)


def vit_mini(ratio: float = 0.7, **options: Any) -> nn.Module:
    """The embedded classifier of 96x96 scenes with ten classes, see ``compressed``."""
    return compressed("vit_mini", ratio, **options)


def segmenter_ti_camvid(ratio: float = 0.7, **options: Any) -> nn.Module:
    """Segmenter-Ti, trained here on CamVid's street scenes, see ``compressed``."""
    return compressed("segmenter_ti_camvid", ratio, **options)


def vitdet_ti(ratio: float = 0.7, **options: Any) -> nn.Module:
    """A detector of blood cells on ViT-Ti/16, trained here on BCCD, see ``compressed``."""
    return compressed("vitdet_ti", ratio, **options)
