"""One run of ``scripts/eval.py``: config in, row out."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import copy
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

import ttf
from ttf import api, processes
from ttf.calibration import calibrate_on, load_matrices
from ttf.data.subset import Shuffled
from ttf.data.transforms import Preprocessing
from ttf.errors import MissingError
from ttf.experiments import Planned
from ttf.measure.provenance import provenance
from ttf.methods.prune_and_merge import PruneAndMerge
from ttf.models.weights import file_digest, fingerprint, load_model
from ttf.results.rows import Rows
from ttf.results.store import SCHEMA, Row, Store, signature
from ttf.tasks.availability import check_fetched, trained_weights
from ttf.tasks.base import Compression
from ttf.tasks.classification import Classification
from ttf.tasks.identity import baseline_of, key_of, settings
from ttf.tasks.options import check_pair, how_far, make_task, pick_device, pick_dtype, pick_placement, reduction
from ttf.tasks.parts import part_of

COUNTED_IMAGES = 16  # where the number of tokens depends on the image, GMACs are a mean over so many


def _checkpoint(cfg: DictConfig) -> Path | None:
    """The file of weights that the config names, or the one that fine-tuning left; None: the model's own weights."""
    if cfg.checkpoint or not cfg.finetuned:
        return Path(cfg.checkpoint) if cfg.checkpoint else None
    path = trained_weights(cfg)
    if not path.is_file():
        raise MissingError(f"no fine-tuned weights at {path}: run ttf finetune experiment={cfg.name} first")
    return path


def _matrices(cfg: DictConfig, checkpoint: Path | None) -> Path | None:
    """Prune and Merge's trained matrices, which fine-tuning leaves beside the weights."""
    if not cfg.finetuned or checkpoint is None or "calibrate" not in cfg.method:
        return None
    path = checkpoint.with_name("method.safetensors")
    if not path.is_file():
        raise MissingError(f"no trained matrices at {path}, beside the weights: fine-tune with this method first")
    return path


class Run:
    """One evaluation. Cheap to make: nothing is loaded before ``measure``.

    Args:
        cfg: the composed config of ``scripts/eval.py``.

    Raises:
        ValueError: task and model do not fit, or the data set or fine-tuned weights are not there.
    """

    def __init__(self, cfg: DictConfig) -> None:
        check_pair(cfg)
        self.cfg, self.device = cfg, pick_device(cfg.device)
        self.checkpoint = _checkpoint(cfg)
        self.matrices = _matrices(cfg, self.checkpoint)
        self.dtype, self.reduction = pick_dtype(cfg.dtype), reduction(cfg)
        self.placement, self.settings = pick_placement(cfg), settings(cfg)
        check_fetched(cfg)
        self.task = make_task(cfg)
        self.model: nn.Module | None = None
        self.how: Row = {}

    def config(self) -> Row:
        """The whole identity: the settings with the digests of data and weights; loads the model."""
        model, _ = self.load()
        found = {**self.settings, "data": self.task.digest, "weights": fingerprint(model)}
        return found | ({"matrices": file_digest(self.matrices)} if self.matrices else {})

    def _compression(self, model: nn.Module) -> AbstractContextManager[Any]:
        return nullcontext() if self.reduction is None else ttf.applied(model, **self.reduction)

    def load(self) -> tuple[nn.Module, Row]:
        """The model with its weights, and its preprocessing, which the task takes on."""
        if self.model is not None:
            return self.model, self.how
        places = (self.cfg.paths.weights, self.cfg.paths.downloads)
        model = load_model(self.cfg.model, self.checkpoint, *places, self.placement)
        self.model, self.how = model, self.task.adopt(model)
        return model, self.how

    def _fit_method(self, model: nn.Module) -> None:
        """Fit a method that is calibrated on images, or take its trained matrices."""
        if self.reduction and "calibrate" in self.reduction:
            options = self.reduction.pop("calibrate")
            method = load_matrices(self.matrices) if self.matrices else self._calibrated(model, **options)
            self.reduction = {**self.reduction, "method": method, "blocks": method.blocks}

    def _calibrated(self, model: nn.Module, images: int, **options: Any) -> PruneAndMerge:
        """Prune and Merge from a pass over the first images of the shuffle, those that ``skip`` leaves out first."""
        whole = copy(self.task)
        whole.data = Shuffled(self.task.set, min(images, len(self.task.data)), self.cfg.seed)
        return calibrate_on(model, whole.images(range(images)), **options)

    def photographs(self, positions: Sequence[int]) -> tuple[nn.Module, Tensor, Preprocessing]:
        """The uncompressed model, the images (B, 3, H, W) at ``positions`` of the shuffle, and their preprocessing.

        Raises:
            ValueError: there is no image at a position, or the task is not classification.
        """
        if not isinstance(self.task, Classification):
            raise ValueError(f"this picture is of classifiers, and the task is {self.cfg.task.name}: set task=cls")
        self.task.check_positions(positions)
        model, _ = self.load()
        self._fit_method(model)
        return model, self.task.images(positions), self.task.how

    def picture(self, path: Path, positions: Sequence[int]) -> None:
        """Fig. 5 for the images at ``positions`` of the shuffle: informative tokens and rows of W, as a PNG.

        Raises:
            ValueError: nothing is reduced, or there is no such image.
        """
        if self.reduction is None:
            raise ValueError("method=none transforms nothing: choose a method")
        from ttf.report.figures import informative_tokens  # matplotlib: not for every evaluation

        model, images, how = self.photographs(positions)
        informative_tokens(images, ttf.trace(ttf.apply(model, **self.reduction), images), how, path)

    def measure(self, config: Row, names: list[Row], given: Sequence[str]) -> Row:
        """Evaluate and time the model; the row of results.

        Args:
            config: from ``config``.
            names: the experiments that this is, see ``names_of``.
            given: the overrides of its command.
        """
        begin = time.time()
        model, how = self.load()
        if self.placement is None:
            model.to(self.device, self.dtype)
        else:
            self.device = next(model.parameters()).device  # the tower's
        self._fit_method(model)
        with self._compression(model):  # a wrong option shows before the long evaluation
            costs, plan = self._costs(model), api.plan(model)
        method = None if plan is None else plan.method
        compression, baseline = self._comparison(model, config)
        found = self.task.outcomes(model, compression, baseline, self._words())
        self.images = found.images
        return {
            "schema": SCHEMA,
            "id": signature(config),
            "key": key_of(config),
            "title": self._title(),
            "config": config,
            "experiments": names,
            "metrics": self.task.metrics(found.images),
            **costs,
            "images": found.count,
            "bad_images": found.bad,
            "preprocessing": how,
            **provenance(self.device, self.dtype, method),
            "throughput": self._throughput(model),
            "command": " ".join(["ttf", "eval", *given]),
            "seconds": round(time.time() - begin, 1),
        }

    def _comparison(self, model: nn.Module, config: Row) -> tuple[Compression | None, Row]:
        """What compresses ``model``, and what its predictions without that depend on.

        A fine-tuned model is compared with its own weights: it has these from here on, and the trained ones within.
        """
        compression = None if self.reduction is None else partial(self._compression, model)
        if "fine_tuned" not in config["model"]:
            return compression, baseline_of(config)
        trained = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        own = load_model(self.cfg.model, None, self.cfg.paths.weights, self.cfg.paths.downloads)
        model.load_state_dict(own.state_dict())
        same = {name: value for name, value in config["model"].items() if name != "fine_tuned"}
        before = {**config, "model": same, "weights": fingerprint(own)}
        return partial(self._trained, model, trained), baseline_of(before)

    @contextmanager
    def _trained(self, model: nn.Module, weights: dict[str, Tensor]) -> Iterator[None]:
        """The model with the weights that fine-tuning made, compressed, for a while."""
        own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        model.load_state_dict(weights)
        try:
            with self._compression(model):
                yield
        finally:
            model.load_state_dict(own)

    def _title(self) -> str:
        """Its line in tables: the experiment's, else the method's name."""
        return self.cfg.title or (self.cfg.method.get("method") or "method")

    def _words(self) -> str:
        return f"{self.cfg.model.name}, {self.cfg.name or self._title()}, {how_far(self.cfg)}"

    def _costs(self, model: nn.Module) -> Row:
        samples = self._samples(model)
        layers = [] if self.reduction is None else ttf.trace(model, samples)
        return {
            "gmacs": fmean(ttf.measure.gmacs(model, image.shape, image) for image in samples),
            "params_m": ttf.measure.params_m(model),
            "tokens": [{"block": la.block, "tokens": (la.sizes > 0).sum(1).double().mean().item()} for la in layers],
        }

    def _samples(self, model: nn.Module) -> Tensor:
        """What costs are counted on: one blank image, or some images where the number of tokens depends on these."""
        like, plan = next(model.parameters()), api.plan(model)
        if plan is None or not plan.method.adaptive:
            return torch.zeros(1, *self.task.input_size).to(like)
        return self.task.images(range(COUNTED_IMAGES)).to(like)

    def _throughput(self, model: nn.Module) -> Row | None:
        """Speed of the uncompressed and the compressed model, interleaved on synthetic images; None if switched off."""
        batch, rounds = self.cfg.throughput.batch_size, self.cfg.throughput.rounds
        if not batch:
            return None
        images = torch.randn(batch, *self.task.input_size).to(self.device, self.dtype)
        models = {"uncompressed": model}
        if self.reduction is not None:
            models["compressed"] = ttf.apply(api.twin(model), **self.reduction)
        times = {name: vars(speed) for name, speed in ttf.measure.interleaved(models, images, rounds).items()}
        parts = [self.task.timed(one) for one in models.values()]
        found = {
            part: ttf.measure.interleaved(dict(zip(models, (own[part] for own in parts), strict=True)), images, rounds)
            for part in parts[0]
        }
        named = {part: {name: vars(speed) for name, speed in speeds.items()} for part, speeds in found.items()}
        return {"batch_size": batch, "rounds": rounds, **times} | ({"parts": named} if named else {})


HIDDEN = ("paths.", "out=", "checkpoint=", "hydra.", "force=")  # of commands that rows keep
OF_THIS_RUN = (
    *HIDDEN,
    "experiment=",
    "batch_size=",
    "workers=",
    "device=",
    "device_map=",
    "offload=",
    "throughput.",
    "logger",
    "on_missing=",
)


def overrides() -> list[str]:
    """The overrides of Hydra's command line, without places on this machine."""
    from hydra.core.hydra_config import HydraConfig

    given = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    return [one for one in given if not one.startswith(HIDDEN)]


def names_of(cfg: DictConfig, given: Sequence[str]) -> list[Row]:
    """What a run is called in tables: its experiment with the overrides that make it this row; none without one.

    Args:
        cfg: the composed config.
        given: its overrides.
    """
    if not cfg.name:
        return []
    telling = sorted(one for one in given if not one.startswith(OF_THIS_RUN))
    return [Planned(cfg.name, cfg.title or cfg.name, tuple(telling)).named]


def execute(cfg: DictConfig, given: Sequence[str] | None = None) -> Row | None:
    """Run once, or return the row of the same run that has finished before.

    Args:
        cfg: the composed config of ``scripts/eval.py``.
        given: its overrides, of which the row keeps its command and its names; None: those of the command line.

    Returns:
        The row; None on all processes but the main one, where several share the images.

    Raises:
        ValueError: for mistakes that are the user's; every failure is recorded beside the rows first.
    """
    run, store = Run(cfg), Store(cfg.paths.runs)
    given = overrides() if given is None else given
    names = names_of(cfg, given)
    config = run.config()
    name = signature(config)
    rows = Rows(cfg.paths.rows, cfg.paths.runs)
    row = None if cfg.force else processes.agreed(_finished(name, rows))
    if row is not None:
        print(f"{name} has finished before (force=true runs it again)", file=sys.stderr)
        store.settle(name)
        return store.note_experiments(row, names)
    if not processes.is_main():
        run.measure(config, names, given)
        return None
    part = None if cfg.force or processes.count() > 1 else part_of(run.task, config, names, rows)
    if part is not None:
        store.begin(name, config)
        store.finish(name, *part)
        return part[0]
    store.begin(name, config)
    try:
        row = run.measure(config, names, given)
    except Exception as error:
        store.fail(name, config, error)
        raise
    store.finish(name, row, run.images)
    return row


def _finished(name: str, rows: Rows) -> Row | None:
    row = next((row for row in rows if row["id"] == name), None)
    return row if row is None or rows.is_published(row) or rows.drafts.is_whole(name) else None
