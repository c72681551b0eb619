"""What schedules do to the outputs of a model: runs over fixed images that share what has been computed before."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ttf.budget import Changing
from ttf.core import entry
from ttf.core.plan import Plan
from ttf.searched import Searched

Objective = Literal["kl", "error"]
OBJECTIVES = ("kl", "error")
PIXELS = 4096  # of dense outputs that are compared, at most
MIB = 2**20


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in what a block or a model returns."""
    if isinstance(value, Tensor):
        yield value
    elif is_dataclass(value) and not isinstance(value, type):
        for one in fields(value):
            yield from _tensors(getattr(value, one.name))
    elif isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _tensors(part)


def _outputs(out: Any, objective: Objective) -> list[Tensor]:
    """What is compared of a model's output: float32, few of the pixels of dense outputs."""
    found = [getattr(out, "logits", out)] if objective == "kl" else list(_tensors(getattr(out, "logits", out)))
    if objective == "kl" and (not isinstance(found[0], Tensor) or found[0].shape[1] < 2):
        raise ValueError("objective=kl compares class probabilities, which this model does not give: take error")
    return [_thinned(one).float() for one in found]


def _thinned(out: Tensor) -> Tensor:
    """Every n-th row and column of a map (B, ..., rows, columns)."""
    if out.ndim < 3 or (out.ndim == 3 and out.shape[-1] * out.shape[-2] <= PIXELS):
        return out
    step = 1
    while (out.shape[-1] // step) * (out.shape[-2] // step) > PIXELS:
        step += 1
    return out[..., ::step, ::step]


def damage(ours: Sequence[Tensor], base: Sequence[Tensor], objective: Objective) -> Tensor:
    """How far outputs are from those of the uncompressed model, (B,) float64.

    Args:
        ours: outputs (B, ...); for "kl" one (B, K) or, of dense models, (B, K, ...).
        base: the uncompressed model's.
        objective: "kl": KL(base || ours) of the class probabilities in nats, a mean over pixels; "error":
            ||y - y_base|| / ||y_base||, a mean over the outputs.

    Raises:
        ValueError: the shapes differ, since the output is shorter.
    """
    for one, other in zip(ours, base, strict=True):
        if one.shape != other.shape:
            raise ValueError(
                f"the output of the compressed model has the shape {tuple(one.shape)}, not {tuple(other.shape)}: give "
                "recover=True"
            )
    if objective == "kl":
        log_q, log_p = ours[0].double().log_softmax(1), base[0].double().log_softmax(1)
        apart = F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(1)
        return apart.flatten(1).mean(1) if apart.ndim > 1 else apart
    errors = [(a - b).flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1) for a, b in zip(ours, base, strict=True)]
    return torch.stack(errors).mean(0).double()


class Runs:
    """A model on some images under any schedule; blocks that a run shares with one before are not computed again.

    Args:
        model: a supported host; it stays as it is.
        plan: with the method; its schedule is not read.
        images: (n, 3, H, W), preprocessed.
        objective: see ``damage``.
        batch: images that go through the model together.
        memory: MiB that may be kept of former runs.
    """

    def __init__(
        self, model: nn.Module, plan: Plan, images: Tensor, objective: Objective, batch: int, memory: int
    ) -> None:
        self.batches, self.objective, self._host = images.split(batch), objective, plan.host
        self._limit, self._held, self._kept = memory * MIB, 0, OrderedDict[Any, tuple[Any, int]]()
        self._model, self._schedule = entry.twin(model, hooks=False).eval(), Changing()
        entry.leave_model(self._model)
        self._base = [_outputs(self._run(number), objective) for number in range(len(self.batches))]
        entry.enter(self._model, replace(plan, schedule=self._schedule))
        for number, block in enumerate(entry.blocks_of(self._model, plan.host), plan.host.first):
            block.__dict__["forward"] = partial(self._step, block, number)

    def damage(self, schedule: Searched, batch: int) -> list[float]:
        """What a schedule does to the outputs of one batch, image by image.

        Raises:
            ValueError: an output that is not finite, or shorter than the uncompressed model's.
        """
        self._schedule.current, self._batch = schedule, batch
        found = damage(_outputs(self._run(batch), self.objective), self._base[batch], self.objective)
        if not found.isfinite().all():
            raise ValueError("the model gives NaN or infinite outputs: check its weights and the preprocessing")
        return found.tolist()

    @torch.inference_mode()
    def _run(self, batch: int) -> Any:
        like = next(self._model.parameters())
        return self._model(self.batches[batch].to(like.device, like.dtype))

    def _step(self, block: Any, number: int, x: Any, *args: Any, **kwargs: Any) -> Any:
        """A block, whose output follows from the images and the schedule up to it."""
        schedule = self._schedule.current
        assert isinstance(schedule, Searched)
        key = self._batch, schedule.counts[: number + 1]
        if key not in self._kept:
            self._keep(key, type(block).forward(block, x, *args, **kwargs))
        self._kept.move_to_end(key)
        return self._kept[key][0]

    def _keep(self, key: Any, out: Any) -> None:
        size = sum(one.numel() * one.element_size() for one in _tensors(out))
        self._kept[key], self._held = (out, size), self._held + size
        while self._held > self._limit and len(self._kept) > 1:
            self._held -= self._kept.popitem(last=False)[1][1]
