"""Classification: top-1 and top-5, and how far a compressed model moves from the uncompressed one.

Shapes: n images, K classes, C channels of the features before the classifier.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from ttf.data.files import atomic_write
from ttf.data.imagenet import BadImageError
from ttf.data.subset import Collate, OnBadImage, Remembered
from ttf.data.transforms import Preprocessing, preprocessing
from ttf.metrics import intervals
from ttf.results.store import Row
from ttf.tasks.base import Compression, Outcomes, Task, progress

REMEMBERED_IMAGES = 2000  # 600 KB each at 224 x 224


@dataclass(frozen=True)
class Predictions:
    """Outputs of a model over a set.

    Attributes:
        logits: (n, K) float32.
        features: (n, C) float32, input of the classifier: the class token after the last norm, or the pooled tokens.
        labels: (n,) int64.
        bad: errors of the images that could not be read (left out).
    """

    logits: Tensor
    features: Tensor
    labels: Tensor
    bad: list[BadImageError]


@contextmanager
def _classifier_inputs(model: Any) -> Iterator[list[Tensor]]:
    """Collect what goes into the classifier. Not for use by several threads on one model."""
    head = model.get_classifier()
    head = head[0] if isinstance(head, tuple) else head
    seen: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        yield seen
    finally:
        handle.remove()


def _check_finite(logits: Tensor, indices: list[int]) -> None:
    rows = (~torch.isfinite(logits).all(dim=1)).nonzero().flatten().tolist()
    if rows:
        numbers = ", ".join(str(indices[r]) for r in rows[:4])
        raise ValueError(f"the model gives NaN or infinite logits for image number {numbers}: check weights and dtype")


@torch.inference_mode()
def predict(
    model: nn.Module,
    data: Dataset[Any],
    *,
    batch_size: int = 50,
    workers: int = 0,
    on_bad_image: OnBadImage = "stop",
    label: str = "evaluating",
) -> Predictions:
    """Run ``model`` over ``data``, items as ``Shuffled`` gives them, with a progress bar.

    Raises:
        ValueError: an unreadable image with on_bad_image="stop", no readable image at all, or NaN logits.
    """
    like = next(model.parameters())
    loader = DataLoader(data, batch_size, num_workers=workers, collate_fn=Collate(on_bad_image))
    logits, labels, bad = list[Tensor](), list[Tensor](), list[BadImageError]()
    with progress(label) as bar, _classifier_inputs(model) as features:
        task = bar.add_task("", total=len(data))  # type: ignore[arg-type]
        for indices, batch, errors in loader:
            bad += errors
            bar.advance(task, len(indices) + len(errors))
            if batch is not None:
                logits.append(model(batch[0].to(like.device, like.dtype)).float().cpu())
                labels.append(batch[1])
                _check_finite(logits[-1], indices)
        if not logits:
            raise ValueError("not a single image could be read: " + "; ".join(map(str, bad[:4])))
        pooled = torch.cat([f.float().cpu() for f in features])
    return Predictions(torch.cat(logits), pooled, torch.cat(labels), bad)


def _share(hits: Tensor) -> dict[str, Any]:
    low, high = intervals.proportion(int(hits.sum()), len(hits))
    return {"value": 100 * hits.double().mean().item(), "ci95": [100 * low, 100 * high]}


def _average(values: Tensor) -> dict[str, Any]:
    return {"value": values.double().mean().item(), "ci95": list(intervals.mean(values))}


def outcomes(ours: Predictions, base: Predictions) -> dict[str, Tensor]:
    """What a row is made of, image by image: (n,) each, bool or float32.

    Returns:
        top1, top5: is the label the most probable class, among the five most probable?
        agreement: is the top-1 class that of the uncompressed model?
        kl: KL(base || ours) of the class probabilities, nats.
        class_token_error: ||c - c_base|| / ||c_base|| of the classifier's input (Fig. 2).
    """
    best = ours.logits.topk(min(5, ours.logits.shape[1]), dim=1).indices
    hits = best == ours.labels.unsqueeze(1)
    log_p, log_q = base.logits.log_softmax(1), ours.logits.log_softmax(1)
    return {
        "top1": hits[:, 0].contiguous(),
        "top5": hits.any(1),
        "agreement": best[:, 0] == base.logits.argmax(1),
        "kl": F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(1),
        "class_token_error": (ours.features - base.features).norm(dim=1) / base.features.norm(dim=1),
    }


def metrics(outcomes: dict[str, Tensor]) -> dict[str, dict[str, Any]]:
    """Means with 95 % intervals: percent (Wilson) of what is true or false, else nats or relative error (normal)."""
    return {name: (_share if o.dtype == torch.bool else _average)(o) for name, o in outcomes.items()}


class Classification(Task):
    """Classification of ImageNet, of subsets of it, or of the embedded scenes; see ``outcomes`` and ``metrics``."""

    how: Preprocessing

    def adopt(self, model: nn.Module) -> Row:
        """See ``Task.adopt``."""
        self.how = preprocessing(model)
        self.set.transform, self.input_size = self.how.build(), self.how.input_size
        return self.how.as_dict()

    def images(self, positions: Sequence[int]) -> Tensor:
        """See ``Task.images``."""
        return torch.stack([self.set[self.data.indices[p]][0] for p in positions if p < len(self.data)])

    def _items(self) -> Dataset[Any]:
        """The images; few enough ones are decoded once for a whole sweep."""
        if len(self.data) > REMEMBERED_IMAGES or self.cfg.workers:
            return self.data
        return Remembered(self.data, (self.digest, tuple(self.data.indices), self.how))

    def _predict(self, model: nn.Module, label: str) -> Predictions:
        return predict(
            model, self._items(), batch_size=self.cfg.batch_size, workers=self.cfg.workers,
            on_bad_image=self.cfg.on_bad_image, label=label,
        )  # fmt: skip

    def _base(self, model: nn.Module, weights: str) -> Predictions:
        """Predictions of the uncompressed model, kept on disk: a sweep computes them once."""
        device = next(model.parameters()).device.type
        identity = [weights, self.digest, self.data.indices, self.how.as_dict(), self.cfg.dtype, device]
        key = hashlib.sha256(repr(identity).encode()).hexdigest()[:16]
        path = Path(self.cfg.paths.cache) / f"base-{key}.safetensors"
        if path.exists():
            return Predictions(**load_file(path), bad=[])
        base = self._predict(model, f"{self.cfg.model.name}, uncompressed")
        if not base.bad:
            tensors = {"logits": base.logits, "features": base.features, "labels": base.labels}
            atomic_write(path, partial(save_file, tensors))
        return base

    def outcomes(self, model: nn.Module, weights: str, compression: Compression | None, label: str) -> Outcomes:
        """See ``Task.outcomes``."""
        ours = base = self._base(model, weights)
        if compression is not None:
            with compression():
                ours = self._predict(model, label)
        return Outcomes(outcomes(ours, base), [error.path.name for error in ours.bad])

    def metrics(self, images: dict[str, Tensor]) -> dict[str, dict[str, Any]]:
        """See ``Task.metrics``."""
        return metrics(images)
