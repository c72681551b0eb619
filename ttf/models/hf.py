"""Image classifiers of Hugging Face transformers as modules from images to logits, with their own preprocessing.

Shapes: B batch, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timm.data import ImageNetInfo
from torch import Tensor, nn

from ttf.errors import MissingError
from ttf.models import hub

RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}  # PIL's numbers
OFFLINE = (
    "offline: network.name=FOLDER, a folder written by save_pretrained of the model and of its image processor "
    "(config.json, model.safetensors, preprocessor_config.json)"
)


class HubClassifier(nn.Module):
    """An image classifier of transformers: images (B, 3, H, W) to logits (B, K).

    Args:
        model: of ``AutoModelForImageClassification``.
        preprocessing: what its image processor does, as ``pretrained_cfg`` of timm's models says it.
    """

    def __init__(self, model: nn.Module, preprocessing: dict[str, Any]) -> None:
        super().__init__()
        self.model, self.pretrained_cfg = model, preprocessing

    def forward(self, images: Tensor) -> Tensor:
        return self.model(pixel_values=images).logits

    def get_classifier(self) -> nn.Module:
        """The layer that gives the logits; of two, that of the class token."""
        names = ("classifier", "cls_classifier")
        return next(getattr(self.model, name) for name in names if hasattr(self.model, name))


def hf_classifier(name: str, classes: int | None = None, pretrained: bool = False) -> HubClassifier:
    """A classifier by its name on the hub, or from a folder of ``save_pretrained``.

    Args:
        name: such as "facebook/deit-small-patch16-224", or a folder.
        classes: how many it must have; 1000 are those of ImageNet-1k, in their order.
        pretrained: load its weights; else they are random.

    Raises:
        MissingError: transformers is not installed, or there is no such model here and none can be downloaded.
        ValueError: it is no image classifier, lacks weights, has other classes, or a preprocessing unknown here.
    """
    library = _library()
    reason = None if _is_here(name) else hub.unreachable()
    if reason:
        raise MissingError(f"{name} could not be loaded ({reason}); {OFFLINE}")
    try:
        config = library.AutoConfig.from_pretrained(name)
        _check_classes(name, config, classes)
        processor = library.AutoImageProcessor.from_pretrained(name)
        model = _network(library.AutoModelForImageClassification, name, config, pretrained)
    except OSError as error:
        raise MissingError(f"{name} could not be loaded ({_reason(error)}); {OFFLINE}") from error
    return HubClassifier(model.eval(), preprocessing_of(processor.to_dict(), name))


def _is_here(name: str) -> bool:
    """Whether a model is a folder, or was downloaded before."""
    if Path(name).exists() or Path(name).is_absolute():
        return True
    try:
        return hub.downloaded(name, "config.json") is not None
    except ValueError:  # no name of the hub, which transformers says
        return True


def _library() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise MissingError("models of Hugging Face need transformers: pip install 'ttf[hf]'") from error
    return transformers


def _reason(error: BaseException) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0].rstrip(".")[:200]


def _network(auto: Any, name: str, config: Any, pretrained: bool) -> nn.Module:
    try:
        if not pretrained:
            return auto.from_config(config)
        model, found = auto.from_pretrained(name, config=config, output_loading_info=True)
    except ValueError as error:
        raise ValueError(f"{name} is no image classifier of transformers: {_reason(error)}") from error
    lacking = sorted(found["missing_keys"])
    if lacking:
        raise ValueError(f"{name} has no weights for {', '.join(lacking[:4])}: take one that was trained to classify")
    return model


def _check_classes(name: str, config: Any, classes: int | None) -> None:
    if classes is None:
        return
    if config.num_labels != classes:
        raise ValueError(f"{name} has {config.num_labels} classes, and the data {classes}: take one trained on these")
    if classes == 1000:
        _check_order(name, config.id2label)


def _first(description: str) -> str:
    return description.split(",")[0].strip().lower()


def _check_order(name: str, labels: Mapping[int, str]) -> None:
    """Raise ``ValueError`` where labels are names of ImageNet's classes in another order; other names say nothing."""
    info = ImageNetInfo("imagenet-1k")
    known: dict[str, list[int]] = {}
    for index in range(1000):
        known.setdefault(_first(info.index_to_description(index)), []).append(index)
    places = {int(index): known.get(_first(label), []) for index, label in labels.items()}
    moved = [index for index, meant in places.items() if meant and index not in meant]
    if 2 * len(moved) > sum(map(bool, places.values())):
        example = f"its class {moved[0]} is {labels[moved[0]]!r}, ImageNet's number {places[moved[0]][0]}"
        raise ValueError(
            f"{name} has ImageNet's classes in another order ({example}): its accuracy would be meaningless"
        )


def preprocessing_of(processor: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What an image processor does, in the words of timm's ``pretrained_cfg``.

    Args:
        processor: its fields, as in preprocessor_config.json.
        name: of the model, for errors.

    Raises:
        ValueError: it does not resize to a square or a shortest side, crop to a square, and divide by 255.
    """
    size, crop = _sides(processor)
    if not (size and crop and crop <= size and processor.get("do_rescale", True)):
        raise ValueError(f"{name} prepares images in a way that ttf does not know: {_described(processor)}")
    normalize = processor.get("do_normalize", True)
    return {
        "input_size": (3, crop, crop),
        "interpolation": RESAMPLING[int(processor.get("resample", 2))],
        "mean": tuple(processor["image_mean"]) if normalize else (0.0, 0.0, 0.0),
        "std": tuple(processor["image_std"]) if normalize else (1.0, 1.0, 1.0),
        "crop_pct": _share(crop, size),
        "crop_mode": "center" if processor["size"].get("shortest_edge") else "squash",
        "crop_floor": True,
    }


def _sides(processor: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Side that images are resized to (the shortest one where they keep their shape), and side of the crop."""
    size = {key: value for key, value in dict(processor.get("size") or {}).items() if value is not None}
    factor = processor.get("rescale_factor", 1 / 255)
    if not processor.get("do_resize", True) or not math.isclose(factor, 1 / 255, rel_tol=1e-6):
        return None, None
    resized = size.get("shortest_edge") if set(size) == {"shortest_edge"} else _square(size)
    if not processor.get("do_center_crop"):
        return resized, _square(size)
    return resized, _square(dict(processor.get("crop_size") or {}))


def _square(size: Mapping[str, Any]) -> int | None:
    height, width = size.get("height"), size.get("width")
    return height if height == width else None


def _share(crop: int, size: int) -> float:
    """Such that crop / share, rounded down as timm does it, is the size."""
    share = crop / size
    return share if math.floor(crop / share) == size else crop / (size + 0.5)


def _described(processor: Mapping[str, Any]) -> str:
    names = ("do_resize", "size", "do_center_crop", "crop_size", "do_rescale", "rescale_factor")
    return ", ".join(f"{name}={processor[name]}" for name in names if name in processor)
