"""Hyper-parameters of a training run, and what follows from them alone: lengths, learning rates, the optimiser."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from ttf.checks import check_types

PRECISIONS = ("no", "bf16", "fp16")
MODES = ("eval", "train")
KEPT = ("last", "best")
LEAST = {
    1: ("epochs", "steps", "batch_size", "accumulate", "lr_reference_batch", "eval_every"),
    0: ("weight_decay", "warmup_steps", "workers", "seed"),
}


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters of one run: AdamW, linear warm-up, cosine decay. The defaults are EViT's fine-tuning.

    Attributes:
        epochs: passes over the data; or None, and ``steps`` says how long.
        steps: optimiser steps; or None, and ``epochs`` says how long.
        batch_size: images per optimiser step, over all processes.
        accumulate: parts that each process computes its share of a step in, one after the other.
        lr: peak learning rate; min_lr: its final value.
        lr_reference_batch: ``lr`` is for so many images per step and grows in proportion; None: ``lr`` as it is.
        lr_factors: learning rates of some parameters over that of the others, by how their names in the model begin.
        weight_decay: on matrices and kernels only.
        warmup_steps: steps from 0 to the peak.
        clip_grad: largest gradient norm, or None.
        mode: "eval": no dropout, no stochastic depth, BatchNorm as it is (official fine-tuning); or "train".
        precision: "no" (float32), "bf16" or "fp16".
        seed: of the initial weights and of the data.
        shuffle: another order in every epoch; False for data that are random already.
        eval_every: steps between evaluations, which save the state for resuming, too; None: every epoch.
        keep: "last", the weights at the end; or "best", those with the lowest loss on the test set at an evaluation or
            at the start.
        workers: processes that make the data, for each training process.

    Raises:
        ValueError: a value out of its range.
    """

    epochs: int | None = 30
    steps: int | None = None
    batch_size: int = 2048
    accumulate: int = 1
    lr: float = 2e-5
    min_lr: float = 2e-6
    lr_reference_batch: int | None = None
    lr_factors: Mapping[str, float] | None = None
    weight_decay: float = 1e-6
    warmup_steps: int = 0
    clip_grad: float | None = None
    mode: str = "eval"
    precision: str = "no"
    seed: int = 0
    shuffle: bool = True
    eval_every: int | None = None
    keep: str = "last"
    workers: int = 1

    def __post_init__(self) -> None:
        try:
            check_types(Recipe, vars(self))
        except ValueError as error:
            raise ValueError(f"train.{error}") from None
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give either train.epochs or train.steps, and null for the other")
        self._check_numbers()
        for name, known in (("mode", MODES), ("precision", PRECISIONS), ("keep", KEPT)):
            if getattr(self, name) not in known:
                raise ValueError(f"train.{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")

    def _check_numbers(self) -> None:
        for least, names in LEAST.items():
            for name in names:
                value = getattr(self, name)
                if value is not None and not least <= value < math.inf:
                    raise ValueError(f"train.{name} must be at least {least}, got {value}")
        if not 0 < self.min_lr <= self.peak_lr < math.inf:
            raise ValueError(f"need 0 < train.min_lr <= the peak of train.lr, got {self.min_lr} and {self.peak_lr}")
        if self.clip_grad is not None and not self.clip_grad > 0:
            raise ValueError(f"train.clip_grad must be above 0, or null for none, got {self.clip_grad}")

    @property
    def peak_lr(self) -> float:
        return self.lr * (self.batch_size / self.lr_reference_batch if self.lr_reference_batch else 1)

    def micro_batch(self, processes: int) -> int:
        """Images that one process computes at a time. Raises ``ValueError`` where the batch does not divide."""
        parts = processes * self.accumulate
        if self.batch_size % parts:
            raise ValueError(
                f"train.batch_size={self.batch_size} does not divide into {processes} processes with "
                f"train.accumulate={self.accumulate}: choose a multiple of {parts}"
            )
        return self.batch_size // parts

    def steps_per_epoch(self, images: int) -> int:
        """Full batches of so many images; the rest of an epoch is left out. Raises ``ValueError`` if there is none."""
        if images < self.batch_size:
            raise ValueError(
                f"train.batch_size={self.batch_size} is more than the {images} images: choose a smaller one"
            )
        return images // self.batch_size

    def total_steps(self, images: int) -> int:
        """Optimiser steps of the whole run on a set of so many images."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return self.epochs * self.steps_per_epoch(images)

    def lr_at(self, step: int, total: int) -> float:
        """Learning rate of a step (0-based) of ``total``."""
        if step < self.warmup_steps:
            return self.peak_lr * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, total - self.warmup_steps)
        return self.min_lr + (self.peak_lr - self.min_lr) * 0.5 * (1 + math.cos(math.pi * done))

    def optimizer(self, model: nn.Module) -> torch.optim.AdamW:
        """AdamW over all parameters that train, without weight decay for vectors (biases, norms).

        Groups have ``factor``, what the learning rate of a step is multiplied by.

        Args:
            model: an objective around ``model.model``.

        Raises:
            ValueError: no parameter's name begins like one of ``lr_factors``.
        """
        factors = {f"model.{start}": factor for start, factor in (self.lr_factors or {}).items()}
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        unread = {*factors}
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            start = next((start for start in factors if name.startswith(start)), "")
            unread.discard(start)
            decay = self.weight_decay if parameter.ndim >= 2 else 0.0
            groups.setdefault((factors.get(start, 1.0), decay), []).append(parameter)
        if unread:
            raise ValueError(f"train.lr_factors: no weights begin with {', '.join(sorted(unread))[6:]}")
        order = sorted(groups.items(), key=lambda group: group[0], reverse=True)
        return torch.optim.AdamW(
            [{"params": p, "factor": factor, "weight_decay": decay} for (factor, decay), p in order], lr=self.peak_lr
        )
