"""What is minimised: modules around a model that give the loss of a batch. Losses are computed in float32.

An objective is made before ``ttf.apply`` compresses its model. Shapes: B batch, K classes.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from ttf.data.segmentation import IGNORED


class Supervised(nn.Module):
    """Cross-entropy with labels, or with the soft targets of mixup and cutmix.

    Args:
        model: gives logits (B, K).
        label_smoothing: share of every target that goes evenly to all classes.
    """

    def __init__(self, model: nn.Module, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.model, self.label_smoothing = model, label_smoothing

    def supervised(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of float32 logits (B, K) with targets, (B,) int64 or (B, K)."""
        return F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """The loss of images (B, 3, H, W) with targets, (B,) int64 or (B, K)."""
        return self.supervised(self.model(images).float(), targets)


class Pixels(Supervised):
    """Cross-entropy of every pixel; logits (B, K, H, W), targets (B, H, W) int64, of which 255 does not count."""

    def supervised(self, logits: Tensor, targets: Tensor) -> Tensor:
        """See ``Supervised.supervised``."""
        return F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing, ignore_index=IGNORED)


class ScaleInvariant(nn.Module):
    """sqrt(mean e^2 - variance * (mean e)^2) of e = ln p - ln g over the measured pixels of a batch (arXiv 1406.2283).

    Args:
        model: gives depths (B, H, W) above 0, in metres.
        variance: share of the common factor of all depths that is forgiven, in [0, 1].

    Raises:
        ValueError: a share out of its range.
    """

    def __init__(self, model: nn.Module, variance: float = 0.85) -> None:
        super().__init__()
        if not 0 <= variance <= 1:
            raise ValueError(f"objective.variance must be in [0, 1], got {variance}")
        self.model, self.variance = model, variance

    def forward(self, images: Tensor, depth: Tensor) -> Tensor:
        """The loss of images (B, 3, H, W) with depths (B, H, W), 0 where nothing was measured."""
        measured = depth > 0
        if not bool(measured.any()):
            raise ValueError("a batch without a single measured depth: check the data set")
        e = self.model(images).float()[measured].clamp_min(1e-3).log() - depth[measured].log()
        return (e.square().mean() - self.variance * e.mean().square()).clamp_min(1e-12).sqrt()


class Distillation(Supervised):
    """Soft labels from the uncompressed model, which is copied and frozen here, beside the supervised loss.

    alpha T^2 KL(teacher / T, model / T), mean over the batch, + (1 - alpha) cross-entropy.

    Args:
        model: not compressed yet.
        alpha: weight of the teacher, in [0, 1].
        temperature: T > 0, of both.
        label_smoothing: of the supervised loss.

    Raises:
        ValueError: a value out of its range.
    """

    def __init__(
        self, model: nn.Module, alpha: float = 0.5, temperature: float = 1.0, label_smoothing: float = 0.0
    ) -> None:
        super().__init__(model, label_smoothing)
        if not 0 <= alpha <= 1 or temperature <= 0:
            raise ValueError(
                f"need objective.alpha in [0, 1] and objective.temperature > 0, got {alpha} and {temperature}"
            )
        self.alpha, self.temperature = alpha, temperature
        self._teacher = (deepcopy(model).eval().requires_grad_(False),)  # no submodule: it is not trained, not saved

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """See ``Supervised.forward``."""
        with torch.no_grad():
            teacher = self._teacher[0](images).float() / self.temperature
        logits = self.model(images).float()
        student = (logits / self.temperature).log_softmax(dim=1)
        soft = F.kl_div(student, teacher.log_softmax(dim=1), reduction="batchmean", log_target=True)
        supervised = self.supervised(logits, targets)
        return self.alpha * self.temperature**2 * soft + (1 - self.alpha) * supervised


class TokenLabelling(Supervised):
    """Training-only supervision: a linear head names what lies under each patch token, beside the model's own head.

    In trials without it ``vit_mini`` had not left chance level after 200 steps. Its weights are not saved.

    Args:
        model: a timm Vision Transformer, not compressed.
        num_labels: semantic labels.
        weight: of the patch loss.
        label_smoothing: of the supervised loss.
    """

    def __init__(
        self, model: VisionTransformer, num_labels: int, weight: float = 1.0, label_smoothing: float = 0.0
    ) -> None:
        super().__init__(model, label_smoothing)
        self.weight = weight
        self.head = nn.Linear(model.embed_dim, num_labels)

    def forward(self, images: Tensor, targets: Tensor, patch_labels: Tensor | None = None) -> Tensor:
        """The loss of a batch: images (B, 3, H, W), targets (B,) or (B, K), patch_labels (B, h, w).

        Raises:
            ValueError: the data set gives no labels of patches.
        """
        if patch_labels is None:
            raise ValueError("token labelling needs labels of patches: set data.train.patch to the side of a patch")
        model: Any = self.model
        tokens = model.forward_features(images)
        patches = self.head(tokens[:, model.num_prefix_tokens :]).float()
        dense = F.cross_entropy(patches.flatten(0, 1), patch_labels.flatten())
        return self.supervised(model.forward_head(tokens).float(), targets) + self.weight * dense
