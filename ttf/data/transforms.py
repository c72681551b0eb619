"""Preprocessing resolved from the model: its weights' own size, crop, interpolation, mean and std."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import timm.data
from PIL import Image
from torch import nn
from torchvision.transforms import CenterCrop


@dataclass(frozen=True)
class FloorCrop:
    """The crop in the middle, its corner rounded down as transformers does it, not to the nearest as torchvision."""

    size: tuple[int, int]

    def __call__(self, image: Image.Image) -> Image.Image:
        height, width = self.size
        left, top = (image.width - width) // 2, (image.height - height) // 2
        return image.crop((left, top, left + width, top + height))


@dataclass(frozen=True)
class Preprocessing:
    """How images become the tensors that the weights were trained for.

    Attributes:
        input_size: (channels, height, width) in pixels.
        interpolation: of the resize, "bicubic" or "bilinear".
        mean, std: per channel, for values in [0, 1].
        crop_pct: side of the crop over side of the resized image.
        crop_mode: timm's name: "center" keeps the shape of the image when it is resized, "squash" does not.
        crop_floor: whether the corner of the crop is rounded down.
    """

    input_size: tuple[int, int, int]
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float
    crop_mode: str = "center"
    crop_floor: bool = False

    def build(self) -> Callable[[Any], Any]:
        """The transform from a PIL image to a (3, H, W) float32 tensor, timm's own evaluation transform."""
        known = {name: value for name, value in self.as_dict().items() if name != "crop_floor"}
        transform: Any = timm.data.create_transform(**known, is_training=False)
        if self.crop_floor:
            steps = transform.transforms
            transform.transforms = [FloorCrop(step.size) if isinstance(step, CenterCrop) else step for step in steps]
        return transform

    def as_dict(self) -> dict[str, Any]:
        """Plain values for the row of results; ``crop_floor`` where it is so."""
        return {name: value for name, value in asdict(self).items() if name != "crop_floor" or value}


def preprocessing(model: nn.Module, **changes: Any) -> Preprocessing:
    """Preprocessing of ``model`` from its ``pretrained_cfg``; ``changes`` replace single fields."""
    known = timm.data.resolve_model_data_config(model)
    own = getattr(getattr(model, "patch_embed", None), "img_size", None)
    if own is not None:  # a model built for another size than its published weights
        known["input_size"] = (known["input_size"][0], *own)
    known["crop_floor"] = bool((getattr(model, "pretrained_cfg", None) or {}).get("crop_floor", False))
    fields = {name: known[name] for name in Preprocessing.__dataclass_fields__}
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    return Preprocessing(**{**fields, **changes})
