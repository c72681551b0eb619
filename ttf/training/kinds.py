"""What differs between tasks while training: how images come before the model, and the figure that counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import timm.data
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from ttf.data import depth
from ttf.data.segmentation import Augmentation
from ttf.data.transforms import preprocessing
from ttf.tasks.resizing import Resizing
from ttf.tasks.windows import Inference
from ttf.training import boxes
from ttf.training.evaluation import Delta1, MeanIoU, Score, Top1

Transform = Callable[..., Any]


@dataclass(frozen=True)
class Kind:
    """One task.

    Attributes:
        training, test: what a data set does to its items.
        score: the figure of an evaluation.
    """

    training: Transform
    test: Transform
    score: Score


def _options(node: DictConfig | None) -> dict[str, Any] | None:
    options: Any = None if node is None else OmegaConf.to_container(node, resolve=True)
    return options


def _classification(model: nn.Module, cfg: DictConfig) -> Kind:
    """timm's training transform with the options ``augment``; without these its evaluation transform."""
    how, options = preprocessing(model), _options(cfg.augment)
    if options is None:
        return Kind(how.build(), how.build(), Top1())
    settings = {"input_size": how.input_size, "mean": how.mean, "std": how.std, **options}
    return Kind(timm.data.create_transform(is_training=True, **settings), how.build(), Top1())


def _segmentation(model: nn.Module, cfg: DictConfig) -> Kind:
    """``ttf.data.segmentation.Augmentation`` with the options ``augment``; without these whole images."""
    if cfg.mixing is not None:
        raise ValueError("mixup and cutmix mix labels of whole images: set mixing=null for segmentation")
    known: Any = model
    statistics: dict[str, Any] = {name: tuple(known.pretrained_cfg[name]) for name in ("mean", "std")}
    inference = Inference(**{**(_options(cfg.model.inference) or {}), **statistics})
    if inference.window is not None:
        raise ValueError("training evaluates whole images: set model.inference.window=null model.inference.stride=null")

    def whole(image: Any, mask: Tensor) -> tuple[Tensor, Tensor]:
        return inference.prepare(image), mask

    options = _options(cfg.augment)
    return Kind(Augmentation(**options, **statistics) if options else whole, whole, MeanIoU())


def _detection(model: nn.Module, cfg: DictConfig) -> Kind:
    """``ttf.training.boxes.Augmentation`` with the options ``augment``; without these the images as they are."""
    if cfg.mixing is not None:
        raise ValueError("mixup and cutmix mix labels of whole images: set mixing=null for detection")
    known: Any = model
    how = known.pretrained_cfg
    fixed = {"size": how["input_size"][1:], "mean": tuple(how["mean"]), "std": tuple(how["std"])}
    still, options = boxes.Preparation(**fixed), _options(cfg.augment)
    return Kind(still if options is None else boxes.Augmentation(**fixed, **options), still, boxes.AveragePrecision())


def _answers(model: nn.Module, cfg: DictConfig) -> Kind:
    """What the tower sees, and words; items are made by the data set."""
    from ttf.models.llava import VisionLanguageModel  # transformers: not for every training
    from ttf.training.answering import Answered, ModelReader

    if cfg.augment is not None or cfg.mixing is not None:
        raise ValueError("questions about an image are neither augmented nor mixed: set augment=null mixing=null")
    assert isinstance(model, VisionLanguageModel)
    data: Any = get_class(cfg.data.test._target_)
    return Kind(ModelReader(model), ModelReader(model), Answered(data.kinds))  # type: ignore[arg-type]


def _depth(model: nn.Module, cfg: DictConfig) -> Kind:
    """``ttf.data.depth.Augmentation`` with the options ``augment``; without these whole images."""
    if cfg.mixing is not None:
        raise ValueError("mixup and cutmix mix labels of whole images: set mixing=null for depth")
    known: Any = model
    statistics: dict[str, Any] = {name: tuple(known.pretrained_cfg[name]) for name in ("mean", "std")}
    resizing = Resizing(**{**(_options(cfg.model.inference) or {}), **statistics})

    def whole(image: Any, metres: Tensor) -> tuple[Tensor, Tensor]:
        return resizing.prepare(image), metres

    options, size = _options(cfg.augment), (resizing.height, resizing.width)
    training = depth.Augmentation(size, **options, **statistics) if options else whole
    return Kind(training, whole, Delta1(resizing))


KINDS = {"cls": _classification, "seg": _segmentation, "depth": _depth, "det": _detection, "vqa": _answers}


def kind_of(model: nn.Module, cfg: DictConfig) -> Kind:
    """The kind of a model's task.

    Args:
        model: as it trains.
        cfg: the composed config of ``scripts/finetune.py``: model, augment, mixing.

    Raises:
        ValueError: options that the task does not have.
    """
    return KINDS[cfg.model.tasks[0]](model, cfg)
