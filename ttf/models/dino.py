"""DINO with Swin-L (arXiv 2203.03605), as mmdet builds it from its own config; needs the extra "openmmlab"."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ttf.models.detector import Found
from ttf.models.trunk import IMAGENET

CONFIG = "dino/dino-5scale_swin-l_8xb2-{epochs}e_coco.py"
COCO = 80  # categories
EPOCHS = (12, 36)


class MMDetector(nn.Module):
    """A detector of mmdet, unchanged, with what a task asks of a model.

    Args:
        detector: built by mmdet. num_classes: its categories.
    """

    def __init__(self, detector: Any, num_classes: int) -> None:
        super().__init__()
        self.detector, self.num_classes = detector, num_classes
        self.pretrained_cfg = {**IMAGENET, "input_size": (3, 800, 1333), "interpolation": "bilinear"}

    @property
    def backbone(self) -> nn.Module:
        return self.detector.backbone

    def forward(self, images: Tensor) -> Any:
        """What mmdet's head says of normalised images (B, 3, H, W)."""
        from mmdet.structures import DetDataSample

        size = tuple(images.shape[-2:])
        known = {"img_shape": size, "ori_shape": size, "pad_shape": size, "batch_input_shape": size}
        samples = [DetDataSample(metainfo={**known, "scale_factor": (1.0, 1.0)}) for _ in images]
        return self.detector.predict(images, samples, rescale=False)

    @torch.inference_mode()
    def detect(self, images: Tensor) -> list[Found]:
        """Detections of every image, best first; see ``ttf.models.detector.Detector.detect``.

        Raises:
            ValueError: scores or boxes are not finite.
        """
        every = [one.pred_instances for one in self(images)]
        if not all(bool(torch.isfinite(one.bboxes).all() & torch.isfinite(one.scores).all()) for one in every):
            raise ValueError("the detector gives NaN or infinite values: check weights and dtype")
        return [Found(one.bboxes, one.scores, one.labels) for one in every]

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """mmdet's names, without this wrapper's."""
        return self.detector.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """mmdet's names."""
        return self.detector.load_state_dict(state_dict, *args, **kwargs)


def dino_swin_l(num_classes: int = COCO, epochs: int = 36, config: str | None = None) -> MMDetector:
    """DINO, five scales, Swin-L: 218.5 M parameters; 58.4 AP on val2017 after 36 epochs (published), 57.2 after 12.

    Args:
        num_classes: categories.
        epochs: 12 or 36, whose config is taken; the models are the same.
        config: another config file of mmdet instead.

    Raises:
        ValueError: mmdet is not installed, or there is no such config.
    """
    if find_spec("mmdet") is None:
        raise ValueError("DINO is built by mmdet, which is not installed: make setup EXTRAS=dev,openmmlab")
    if epochs not in EPOCHS:
        raise ValueError(f"mmdet has configs of DINO with Swin-L for {EPOCHS} epochs, got {epochs}")
    from ttf import openmmlab

    openmmlab.prepare()
    import mmdet
    from mmdet.registry import MODELS
    from mmdet.utils import register_all_modules
    from mmengine.config import Config

    register_all_modules(init_default_scope=True)
    path = Path(config or Path(mmdet.__file__).parent / ".mim" / "configs" / CONFIG.format(epochs=epochs))
    if not path.is_file():
        raise ValueError(f"no config of mmdet at {path}: give model.network.config=FILE")
    node = Config.fromfile(str(path)).model
    node.backbone.update(init_cfg=None, with_cp=False)  # else it downloads the backbone, and computes things twice
    node.bbox_head.num_classes = num_classes
    return MMDetector(MODELS.build(node), num_classes)
