"""The training loop, on Hugging Face Accelerate: one process or many, resumable bit for bit.

The state after step s is a function of the recipe, the data and s alone: no generator runs on from step to step (see
``ttf.training.data``), so what an interrupted run does again is what it would have done.
"""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from ttf.data.files import atomic_write
from ttf.ops.numerics import NotFiniteError
from ttf.training.data import Batches, Mixing, seed_torch, training_batches
from ttf.training.evaluation import Score, Top1, mean_loss
from ttf.training.recipe import Recipe
from ttf.training.report import Report
from ttf.training.state import StateFolder

Row = dict[str, float]


def make_engine(precision: str = "no", device: str = "auto") -> Accelerator:
    """The engine of this process, from the environment that torchrun sets.

    Args:
        precision: "no", "bf16" or "fp16".
        device: "auto": a GPU for each process if there are any; or "cpu".

    Raises:
        ValueError: fp16 without a GPU, or another device.
    """
    if device not in ("auto", "cpu"):
        raise ValueError(f"device must be auto or cpu, got {device!r}: CUDA_VISIBLE_DEVICES chooses among GPUs")
    cpu = device == "cpu" or not torch.cuda.is_available()
    if precision == "fp16" and cpu:
        raise ValueError("train.precision=fp16 needs a GPU: use bf16 or no")
    AcceleratorState._reset_state()  # of an earlier run of a sweep in this process, perhaps of another precision
    return Accelerator(mixed_precision=precision, cpu=cpu)


class Trainer:
    """One training run in ``folder``: ``state/`` to resume from, ``log.csv`` with a row per evaluation.

    Args:
        objective: a module around ``objective.model`` that gives the loss of a batch; trained in place.
        train: map-style data set; every item is an image, a label and what else the objective takes.
        test: data set of the evaluations.
        recipe: hyper-parameters.
        folder: where state and log go.
        engine: as ``make_engine`` gives it; None: made here.
        mixing: of images and labels, or None.
        report: called with every row of the log, in the main process.
        score: figure of the evaluations; None: top-1.

    Raises:
        ValueError: the batch does not divide into processes and parts, or there are too few images.
    """

    def __init__(
        self,
        objective: nn.Module,
        train: Any,
        test: Any,
        recipe: Recipe,
        folder: Path,
        *,
        engine: Accelerator | None = None,
        mixing: Mixing | None = None,
        report: Report | None = None,
        score: Score | None = None,
    ) -> None:
        self.engine = engine or make_engine(recipe.precision)
        self.train, self.test, self.recipe, self.score = train, test, recipe, score or Top1()
        self.folder, self.state, self.mixing, self.report = folder, StateFolder(folder / "state"), mixing, report
        self.batches = Batches(recipe, len(train), 0, self.engine.process_index, self.engine.num_processes)
        self.core = objective.to(self.engine.device)
        self.objective, self.optimizer = self.engine.prepare(self.core, recipe.optimizer(self.core))
        self.step, self.seconds, self.rows = 0, 0.0, list[Row]()
        self.best: dict[str, Any] | None = None  # loss on the test set, step and weights, with keep="best"

    @property
    def model(self) -> nn.Module:
        model = self.core.model
        assert isinstance(model, nn.Module)
        return model

    def resume(self) -> None:
        """Continue from the last complete checkpoint if an earlier run left one.

        Raises:
            ValueError: it is damaged, or of another run.
        """
        state = self.state.load()
        if state is None:
            return
        try:
            self.core.load_state_dict(state["objective"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.engine.scaler is not None and state["scaler"]:
                self.engine.scaler.load_state_dict(state["scaler"])
            self.step, self.seconds, self.rows = int(state["step"]), float(state["seconds"]), list(state["rows"])
            self.best = state.get("best")
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise self.state.of_another_run() from error

    def _save(self) -> None:
        state: dict[str, Any] = {"objective": self.core.state_dict(), "optimizer": self.optimizer.state_dict()}
        state["scaler"] = self.engine.scaler.state_dict() if self.engine.scaler is not None else None
        self.state.save(state | {"step": self.step, "seconds": self.seconds, "rows": self.rows, "best": self.best})
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(self.rows[-1]))
        writer.writeheader()
        writer.writerows(self.rows)
        atomic_write(self.folder / "log.csv", lambda path: path.write_text(text.getvalue(), newline=""))

    def _loss(self, part: int, batch: list[Tensor]) -> Tensor:
        """The loss of one micro batch."""
        batch = [tensor.to(self.engine.device, non_blocking=True) for tensor in batch]
        if self.mixing is not None:
            if len(batch) != 2:
                raise ValueError("mixup and cutmix take images and labels alone: set mixing=null for this objective")
            batch = list(self.mixing(batch[0], batch[1], self.step, self.batches.offset(part)))
        seed_torch(self.recipe.seed, self.step, self.batches.offset(part))
        return self.objective(*batch)

    def _gradients(self, batches: Iterator[list[Tensor]]) -> float:
        """Gradients of one step on all parameters; its loss over all processes."""
        parts, total = self.recipe.accumulate, torch.zeros((), device=self.engine.device)
        for part in range(parts - 1):
            with self.engine.no_sync(self.objective):
                total += self._backward(part, next(batches))
        total += self._backward(parts - 1, next(batches))
        return self.engine.reduce(total, "mean").item()

    def _backward(self, part: int, batch: list[Tensor]) -> Tensor:
        loss = self._loss(part, batch) / self.recipe.accumulate
        self.engine.backward(loss)
        return loss.detach()

    def _update(self, batches: Iterator[list[Tensor]]) -> float:
        """One optimiser step; its loss. A loss that is not finite is refused before it reaches the weights."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["factor"] * self.recipe.lr_at(self.step, self.batches.total)
        self.objective.train(self.recipe.mode == "train")
        try:
            loss = self._gradients(batches)
        except NotFiniteError as error:
            said = f"the model has NaN or infinite values at step {self.step}"
            raise ValueError(f"{said}: lower train.lr or check the data") from error
        if not math.isfinite(loss):
            raise ValueError(f"the loss is {loss} at step {self.step}: lower train.lr or check the data")
        if self.recipe.clip_grad is not None:
            self.engine.clip_grad_norm_(self.objective.parameters(), self.recipe.clip_grad)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return loss

    def _compare(self) -> dict[str, float]:
        """Note the weights if no earlier ones had a lower loss on the test set; that loss, with keep="best"."""
        if self.recipe.keep == "last":
            return {}
        loss = mean_loss(self.core, self.test, self.engine, self.score.batch_size, self.recipe.workers)
        if self.best is None or loss < self.best["loss"]:
            weights = {name: tensor.clone() for name, tensor in self.core.state_dict().items()}
            self.best = {"loss": loss, "step": self.step, "objective": weights}
        return {"test_loss": round(loss, 5)}

    def keep_best(self) -> dict[str, float]:
        """Go back to the best weights, with keep="best"; which these are."""
        if self.best is None:
            return {}
        self.core.load_state_dict(self.best["objective"])
        return {"kept_step": self.best["step"], "test_loss": round(self.best["loss"], 5)}

    def _evaluate(self, loss: float) -> str:
        outcomes = self.score.outcomes(self.model, self.test, self.engine, self.recipe.workers)
        figure = self.score.percent(outcomes)
        parts = {name: round(value, 2) for name, value in self.score.by_part(outcomes).items()}
        lr = self.recipe.lr_at(self.step - 1, self.batches.total)
        row = {"step": self.step, "loss": round(loss, 4), "lr": lr, self.score.name: round(figure, 2), **parts}
        row |= self._compare()
        self.rows.append(row | {"seconds": round(self.seconds, 1)})
        if self.engine.is_main_process:
            self._save()
            if self.report is not None:
                self.report(self.rows[-1])
        self.engine.wait_for_everyone()
        return f"step {self.step}  loss {loss:.3f}  {self.score.name} {figure:.1f} %  {self.seconds:.0f} s"

    def fit(self) -> list[Row]:
        """Train to the end of the recipe. Returns the log's rows: step, loss, lr, the score (%), seconds."""
        console = Console(quiet=not self.engine.is_main_process)
        columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        try:
            with Progress(*columns, console=console) as bar:
                self._steps(bar, console)
        except KeyboardInterrupt:
            saved = self.rows[-1]["step"] if self.rows else 0
            console.print(f"interrupted at step {self.step}: the same command goes on from step {saved}")
            raise
        return self.rows

    def _steps(self, bar: Progress, console: Console) -> None:
        if self.best is None:
            self._compare()
        total, every = self.batches.total, self.recipe.eval_every or self.batches.per_epoch
        task, window = bar.add_task("", total=total, completed=self.step), list[float]()
        self.batches.start = self.step
        batches, begin = training_batches(self.train, self.batches), time.perf_counter()
        while self.step < total:
            window.append(self._update(batches))
            bar.advance(task)
            if self.step % every == 0 or self.step == total:
                self.seconds += time.perf_counter() - begin
                console.print(self._evaluate(sum(window) / len(window)))
                window, begin = [], time.perf_counter()
