"""Classification: top-1 and top-5, and how far a compressed model moves from the uncompressed one.

Shapes: n images, K classes, C channels of the features before the classifier.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from ttf import processes
from ttf.data.reading import BadImageError
from ttf.data.subset import OnBadImage, Remembered, batched, collate, readable
from ttf.data.transforms import Preprocessing, preprocessing
from ttf.results.kept import kept_tensors, write_tensors
from ttf.results.store import Row, signature
from ttf.tasks.base import Bar, Compression, Outcomes, Task

OUTPUTS = ("logits", "features", "labels")
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


@dataclass(frozen=True)
class Reading:
    """How images are read: so many together, by so many processes, and what happens to one that cannot be read."""

    batch_size: int = 50
    workers: int = 0
    on_bad_image: OnBadImage = "stop"


@dataclass(frozen=True)
class _Part:
    """What a model gives for a batch of images."""

    logits: Tensor | None
    features: Tensor | None
    labels: Tensor | None
    bad: list[BadImageError]


@torch.inference_mode()
def _parts(model: nn.Module, data: Dataset[Any], batches: list[list[int]], read: Reading, label: str) -> list[_Part]:
    like = next(model.parameters())
    read_batches = batched(data, batches, read.workers, collate)
    found = []
    with Bar(label, sum(map(len, batches))) as bar, _classifier_inputs(model) as features:
        for indices, batch, failed in read_batches:
            errors = [readable(error, read.on_bad_image) for error in failed]
            part = _Part(None, None, None, errors)
            if batch is not None:
                logits = model(batch[0].to(like.device, like.dtype)).float().cpu()
                _check_finite(logits, indices)
                part = _Part(logits, features.pop().float().cpu(), batch[1], errors)
            found.append(part)
            bar.advance(len(indices) + len(errors))
    return found


def predict(
    model: nn.Module, data: Dataset[Any], read: Reading | None = None, label: str = "evaluating"
) -> Predictions:
    """Run ``model`` over ``data``, items as ``Shuffled`` gives them, with a progress bar.

    Several processes (torchrun) share the batches, which stay the same, so the outputs are those of one process.

    Raises:
        ValueError: an unreadable image with on_bad_image="stop", no readable image at all, or NaN logits.
    """
    read = read or Reading()
    whole = list(range(len(data)))  # type: ignore[arg-type]
    batches = [whole[first : first + read.batch_size] for first in range(0, len(whole), read.batch_size)]
    share = processes.mine(batches)
    parts = _parts(model, data, [batch for _, batch in share], read, label)
    parts = processes.together([(place, part) for (place, _), part in zip(share, parts, strict=True)])
    bad = [error for part in parts for error in part.bad]
    logits, features, labels = ([v for part in parts if (v := getattr(part, name)) is not None] for name in OUTPUTS)
    if not logits:
        raise ValueError("not a single image could be read: " + "; ".join(map(str, bad[:4])))
    return Predictions(torch.cat(logits), torch.cat(features), torch.cat(labels), bad)


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


class Classification(Task):
    """Classification of ImageNet, of subsets of it, or of the embedded scenes; see ``outcomes``."""

    name = "cls"
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
        if len(self.data) > REMEMBERED_IMAGES or self.workers:
            return self.data
        return Remembered(self.data, (self.digest, tuple(self.data.indices), self.how))

    def _predict(self, model: nn.Module, label: str) -> Predictions:
        return predict(model, self._items(), Reading(self.batch_size, self.workers, self.on_bad_image), label)

    def _base(self, model: nn.Module, baseline: Row | None, label: str) -> Predictions:
        """Predictions of the uncompressed model, kept on disk: a sweep computes them once."""
        path = self._kept(model, baseline)
        known = None if path is None else kept_tensors(path)
        if processes.agreed(known is not None):
            return Predictions(**(known or {}), bad=[])
        base = self._predict(model, f"{label}, uncompressed")
        if path is not None and not base.bad and processes.is_main():
            tensors = {"logits": base.logits, "features": base.features, "labels": base.labels}
            write_tensors(path, tensors)
        return base

    def _kept(self, model: nn.Module, baseline: Row | None) -> Path | None:
        """The file for these predictions; None where they are not kept."""
        if self.cache is None or baseline is None:
            return None
        device = next(model.parameters()).device.type
        return (
            self.cache
            / f"base-{signature({**baseline, 'preprocessing': self.how.as_dict(), 'device': device})}.safetensors"
        )

    def outcomes(self, model: nn.Module, compression: Compression | None, baseline: Row | None, label: str) -> Outcomes:
        """See ``Task.outcomes``."""
        ours = base = self._base(model, baseline, label)
        if compression is not None:
            with compression():
                ours = self._predict(model, label)
        return Outcomes(outcomes(ours, base), [error.name for error in ours.bad])
