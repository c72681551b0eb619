"""The training loop behind ``scripts/finetune.py``: supervised, step-based, resumable.

Scene ``step * batch_size + i`` is the i-th sample of a step, so a resumed run sees the data that an uninterrupted
one would have seen.
"""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Subset

from ttf.data.files import atomic_write

LOG_FIELDS = ("step", "loss", "lr", "top1", "seconds")


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters of one run: AdamW, linear warm-up, cosine decay.

    Attributes:
        steps: optimiser steps.
        batch_size: images per step.
        lr: peak learning rate; min_lr: its final value.
        weight_decay: on matrices and kernels only.
        warmup_steps: steps from 0 to ``lr``.
        clip_grad: largest gradient norm.
        seed: of the initial weights and of the data.
        eval_every: steps between evaluations; the state for resuming is saved then, too.
        workers: processes that make the data.
    """

    steps: int = 1800
    batch_size: int = 64
    lr: float = 1.5e-3
    min_lr: float = 1e-5
    weight_decay: float = 0.05
    warmup_steps: int = 100
    clip_grad: float = 1.0
    seed: int = 0
    eval_every: int = 100
    workers: int = 1

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "eval_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.min_lr <= self.lr:
            raise ValueError(f"need 0 < train.min_lr <= train.lr, got {self.min_lr} and {self.lr}")

    def lr_at(self, step: int) -> float:
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.min_lr + (self.lr - self.min_lr) * 0.5 * (1 + math.cos(math.pi * done))


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    decay = [p for p in model.parameters() if p.requires_grad and p.ndim >= 2]
    plain = [p for p in model.parameters() if p.requires_grad and p.ndim < 2]
    groups = [{"params": decay, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.lr)


def _batches(data: Dataset, recipe: Recipe, start: int) -> Iterator[list[Tensor]]:
    rest = Subset(data, range(start * recipe.batch_size, recipe.steps * recipe.batch_size))
    return iter(DataLoader(rest, recipe.batch_size, num_workers=recipe.workers))


@torch.inference_mode()
def top1(model: nn.Module, data: Dataset, batch_size: int = 100) -> float:
    """Share of ``data`` that ``model`` (set to evaluation here) classifies correctly, in percent."""
    model.eval()
    hits = [(model(x).argmax(1) == y).float() for x, y in DataLoader(data, batch_size)]
    return 100 * torch.cat(hits).mean().item()


class TokenLabelling(nn.Module):
    """Training-only supervision: a linear head names what lies under each patch token, beside the model's own head.

    In trials without it ``vit_mini`` had not left chance level after 200 steps. Its weights are not saved.

    Args:
        model: a timm Vision Transformer.
        num_labels: semantic labels.
        weight: of the patch loss.
    """

    def __init__(self, model: VisionTransformer, num_labels: int, weight: float = 1.0) -> None:
        super().__init__()
        self.model, self.weight = model, weight
        self.head = nn.Linear(model.embed_dim, num_labels)

    def forward(self, images: Tensor, labels: Tensor, patch_labels: Tensor) -> Tensor:
        """The loss of a batch: images (B, 3, H, W), labels (B,), patch_labels (B, h, w)."""
        tokens = self.model.forward_features(images)
        patches = self.head(tokens[:, self.model.num_prefix_tokens :])
        dense = F.cross_entropy(patches.flatten(0, 1), patch_labels.flatten())
        return F.cross_entropy(self.model.forward_head(tokens), labels) + self.weight * dense


class Trainer:
    """One training run in ``folder``: ``state.pt`` to resume from, ``log.csv`` with a row per evaluation.

    Args:
        model: trained in place.
        objective: a module around ``model`` that gives the loss of a batch.
        train: map-style data set of at least steps * batch_size samples.
        test: data set of the evaluations.
        recipe: hyper-parameters.
        folder: where state and log go.
    """

    def __init__(
        self, model: nn.Module, objective: nn.Module, train: Dataset, test: Dataset, recipe: Recipe, folder: Path
    ) -> None:
        self.model, self.objective = model, objective
        self.train, self.test = train, test
        self.recipe, self.folder = recipe, folder
        self.optimizer = _optimizer(objective, recipe)
        self.step, self.seconds, self.rows = 0, 0.0, list[dict[str, float]]()
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def state_file(self) -> Path:
        return self.folder / "state.pt"

    def resume(self) -> None:
        """Continue from ``state.pt`` if an earlier run left one."""
        if not self.state_file.exists():
            return
        state = torch.load(self.state_file, weights_only=True)
        self.objective.load_state_dict(state["objective"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds, self.rows = state["step"], state["seconds"], state["rows"]

    def _save(self) -> None:
        state: dict[str, Any] = {"objective": self.objective.state_dict(), "optimizer": self.optimizer.state_dict()}
        state |= {"step": self.step, "seconds": self.seconds, "rows": self.rows}
        atomic_write(self.state_file, lambda path: torch.save(state, path))
        with open(self.folder / "log.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, LOG_FIELDS)
            writer.writeheader()
            writer.writerows(self.rows)

    def _update(self, *batch: Tensor) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.lr_at(self.step)
        self.objective.train()
        loss = self.objective(*batch)
        if not math.isfinite(loss.item()):
            raise ValueError(f"the loss is {loss.item()} at step {self.step}: lower train.lr or check the data")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.objective.parameters(), self.recipe.clip_grad)
        self.optimizer.step()
        self.step += 1
        return loss.item()

    def _evaluate(self, loss: float) -> str:
        row = {"step": self.step, "loss": round(loss, 4), "lr": self.recipe.lr_at(self.step - 1)}
        row |= {"top1": round(top1(self.model, self.test), 2), "seconds": round(self.seconds, 1)}
        self.rows.append(row)
        self._save()
        return f"step {self.step}  loss {loss:.3f}  top-1 {row['top1']:.1f} %  {self.seconds:.0f} s"

    def fit(self) -> list[dict[str, float]]:
        """Train to the end of the recipe. Returns the log's rows: step, loss, lr, top1 (%), seconds."""
        recipe, console = self.recipe, Console()
        columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as bar:
            task = bar.add_task("", total=recipe.steps, completed=self.step)
            window: list[float] = []
            for batch in _batches(self.train, recipe, self.step):
                begin = time.perf_counter()
                window.append(self._update(*batch))
                self.seconds += time.perf_counter() - begin
                bar.advance(task)
                if self.step % recipe.eval_every == 0 or self.step == recipe.steps:
                    console.print(self._evaluate(sum(window) / len(window)))
                    window.clear()
        return self.rows
