"""Preprocessing resolved from the model: its weights' own size, crop, interpolation, mean and std."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import timm.data
from torch import nn


@dataclass(frozen=True)
class Preprocessing:
    """How images become the tensors that the weights were trained for.

    Attributes:
        input_size: (channels, height, width) in pixels.
        interpolation: of the resize, "bicubic" or "bilinear".
        mean, std: per channel, for values in [0, 1].
        crop_pct: side of the crop over side of the resized image.
        crop_mode: timm's name, "center" for all models here.
    """

    input_size: tuple[int, int, int]
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float
    crop_mode: str = "center"

    def build(self) -> Callable[[Any], Any]:
        """The transform from a PIL image to a (3, H, W) float32 tensor, timm's own evaluation transform."""
        return timm.data.create_transform(**self.as_dict(), is_training=False)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for the row of results."""
        return asdict(self)


def preprocessing(model: nn.Module, **changes: Any) -> Preprocessing:
    """Preprocessing of ``model`` from its ``pretrained_cfg``; ``changes`` replace single fields."""
    known = timm.data.resolve_model_data_config(model)
    own = getattr(getattr(model, "patch_embed", None), "img_size", None)
    if own is not None:  # a model built for another size than its published weights
        known["input_size"] = (known["input_size"][0], *own)
    fields = {name: known[name] for name in Preprocessing.__dataclass_fields__}
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    return Preprocessing(**{**fields, **changes})
