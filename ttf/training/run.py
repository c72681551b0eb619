"""One run of ``scripts/finetune.py``: config in; weights, log and summary out."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

import ttf
from ttf.building import build
from ttf.calibration import calibrate_on, load_matrices, save_matrices
from ttf.data.files import atomic_write
from ttf.metrics.paired import mcnemar
from ttf.models.dpt import DPT
from ttf.models.segmenter import encoder_from_timm
from ttf.models.weights import NOTHING, TOWER, load_model, load_strictly, save_weights
from ttf.results.kept import kept_tensors, made_anew, read_tensors, write_tensors
from ttf.results.store import Row, signature, write_json
from ttf.tasks.options import reduction
from ttf.training.data import Mixing
from ttf.training.evaluation import Score
from ttf.training.kinds import kind_of
from ttf.training.loop import Trainer, make_engine
from ttf.training.matrices import TrainableMatrices
from ttf.training.report import reporter
from ttf.training.state import StateFolder

# what the numbers depend on: a folder belongs to one such run
TRAINING = ("model", "method", "data", "augment", "mixing", "objective", "train", "pretrained", "checkpoint", "encoder")
REDUCTION = ("schedule", "recover")
INCIDENTAL = {"train": ("workers", "accumulate"), "data": ("root",)}


def identity(cfg: DictConfig) -> Row:
    """The settings that the numbers of a run depend on: no paths of data, no number of processes."""
    resolved: Any = OmegaConf.to_container(cfg, resolve=True)
    used = TRAINING if cfg.method.get("method") == "none" else TRAINING + REDUCTION
    chosen: Row = {key: resolved[key] for key in used}
    chosen["train"] = {k: v for k, v in chosen["train"].items() if k not in INCIDENTAL["train"]}
    for part in ("train", "test"):
        chosen["data"][part] = {k: v for k, v in chosen["data"][part].items() if k not in INCIDENTAL["data"]}
    return chosen


def join_processes() -> None:
    """Several tasks of one submitit job are the processes of one training run: tell torch.distributed so."""
    if "SUBMITIT_EXECUTOR" not in os.environ:
        return
    import submitit

    if submitit.JobEnvironment().num_tasks > 1:
        submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False)


def summary(outcomes: dict[str, Tensor], score: Score, last: Row) -> Row:
    """The figures of the uncompressed, the training-free and the fine-tuned model on the same images.

    Args:
        outcomes: (n, ...) by name, "finetuned" and, where the run began with trained weights, the other two.
        score: makes figures of them.
        last: the last row of the log.
    """
    figures = {name: round(score.percent(values), 2) for name, values in outcomes.items()}
    out: Row = {"images": len(outcomes["finetuned"]), score.name: figures}
    out |= {"steps": last["step"], "seconds": last["seconds"]}
    if "uncompressed" not in outcomes:
        return out
    drop, rest = (figures["uncompressed"] - figures[name] for name in ("training_free", "finetuned"))
    out |= {"drop_training_free": round(drop, 2), "drop_finetuned": round(rest, 2)}
    out["recovered"] = round((drop - rest) / drop, 3) if drop > 0 else None
    ours, free = outcomes["finetuned"], outcomes["training_free"]
    if ours.dtype != torch.bool:
        return out
    out |= {"made_right": int((ours & ~free).sum()), "made_wrong": int((free & ~ours).sum())}
    return out | {"mcnemar_p": mcnemar(ours, free)}


def _has(path: Path, text: str) -> bool:
    return path.is_file() and text in path.read_text(errors="replace")


class FineTuning:
    """One run of ``scripts/finetune.py``.

    Args:
        cfg: its composed config.

    Raises:
        ValueError: for mistakes that are the user's.
    """

    def __init__(self, cfg: DictConfig) -> None:
        join_processes()
        self.cfg, self.folder = cfg, Path(cfg.output)
        self.recipe = build(cfg.train)
        self.engine = make_engine(self.recipe.precision, cfg.device)
        self.reduction, self.identity = reduction(cfg), identity(cfg)
        self.model = self._load()
        self.kind = kind_of(self.model, cfg)
        self.test = build(cfg.data.test, transform=self.kind.test)
        self.train = build(cfg.data.train, transform=self.kind.training)
        self.objective: nn.Module = build(cfg.objective, _partial_=True)(self.model)

    def _load(self) -> nn.Module:
        cfg, places = self.cfg, (self.cfg.checkpoint, self.cfg.paths.weights, self.cfg.paths.downloads)
        torch.manual_seed(cfg.train.seed)
        with self.engine.main_process_first():  # which downloads where that is needed
            model = load_model(cfg.model, *places) if cfg.pretrained else build(cfg.model.network)
            if cfg.encoder is not None:
                own = (cfg.encoder.get("checkpoint") or cfg.checkpoint, *places[1:])
                self._take_encoder(model, load_model(cfg.encoder, *own))
        return model.to(self.engine.device)

    def _take_encoder(self, model: nn.Module, trained: nn.Module) -> None:
        """Give the encoder of a dense model, or the tower of a LLaVA, the weights of a trained ViT."""
        tensors = trained.state_dict()
        if "vqa" in self.cfg.model.tasks:
            from ttf.models.llava_mini import take_tower  # transformers: not for every training

            take_tower(model, trained)
        else:
            start = model.with_encoder(tensors) if isinstance(model, DPT) else encoder_from_timm(model, tensors)
            load_strictly(model, start, self.cfg.encoder.name)

    def _alone(self, work: Callable[[], object]) -> None:
        """Work of the main process, which the others wait for."""
        if self.engine.is_main_process:
            work()
        self.engine.wait_for_everyone()

    def _mixing(self) -> Mixing | None:
        if self.cfg.mixing is None:
            return None
        options: Any = OmegaConf.to_container(self.cfg.mixing, resolve=True)
        model: Any = self.model
        return Mixing(model.num_classes, seed=self.cfg.train.seed, **options)

    def _settings(self) -> dict[str, Any]:
        """All settings, resolved, but the folders of this machine."""
        resolved: Any = OmegaConf.to_container(self.cfg, resolve=True)
        return {key: value for key, value in resolved.items() if key != "paths"}

    def _check_folder(self) -> None:
        """Raise ``ValueError`` where the folder has files with names of ours, and is none of a training."""
        ours = {"config.yaml": "ttf.training.Recipe", "log.csv": "step,"}
        if (self.folder / "state").is_dir() or any(_has(self.folder / name, text) for name, text in ours.items()):
            return
        names = (*ours, "summary.json", "method.safetensors", f"{self.cfg.model.name}.safetensors")
        found = [name for name in names if os.path.lexists(self.folder / name)]
        if found:
            what = f"has a {found[0]}, and not of a training, which would replace it"
            raise ValueError(f"{self.folder} {what}: choose another output=FOLDER")

    def _begin(self) -> None:
        self._check_folder()
        StateFolder(self.folder / "state").claim(self.identity)
        text = OmegaConf.to_yaml(self._settings())
        atomic_write(self.folder / "config.yaml", lambda path: path.write_text(text))

    def _is_calibration(self, path: Path) -> bool:
        try:
            load_matrices(path)
        except ValueError:
            made_anew(path, "is damaged: calibrated again")
            return False
        return True

    def _calibration(self, path: Path) -> None:
        """Matrices from a pass over the first training images, with the model's own answers as labels."""
        assert self.reduction is not None
        if path.exists() and self._is_calibration(path):
            return
        options = dict(self.reduction["calibrate"])
        data = build(self.cfg.data.train, transform=self.kind.test)
        images = torch.stack([data[i][0] for i in range(min(options.pop("images"), len(data)))])
        save_matrices(calibrate_on(self.model, images, **options), path)

    def _compress(self) -> None:
        """Token reduction as the config says; a method with matrices brings them into the objective."""
        if self.reduction is None:
            return
        if "calibrate" in self.reduction:
            path = self.folder / "state" / "calibration.safetensors"
            self._alone(partial(self._calibration, path))
            matrices = TrainableMatrices(load_matrices(path)).to(self.engine.device)
            self.objective.matrices = matrices
            self.reduction = {"recover": self.cfg.recover, "method": matrices.method(), "blocks": matrices.blocks}
        ttf.apply(self.model, **self.reduction)

    def _outcomes(self) -> Tensor:
        return self.kind.score.outcomes(self.model, self.test, self.engine, self.recipe.workers)

    def _compressed_and_before(self) -> dict[str, Tensor]:
        """Compress the model; what it got right before the training, uncompressed and compressed (n,) bool."""
        path = self.folder / "state" / "before.safetensors"
        known = not self.cfg.pretrained or kept_tensors(path) is not None
        uncompressed = None if known else self._outcomes()
        self._compress()
        if uncompressed is not None:
            before = {"uncompressed": uncompressed, "training_free": self._outcomes()}
            self._alone(lambda: write_tensors(path, before))
        return read_tensors(path) if self.cfg.pretrained else {}

    def _write(self, outcome: Row) -> None:
        """The final weights and the summary, with the settings that it is of."""
        without = TOWER if self.cfg.model.get("tower") else NOTHING
        save_weights(self.model, self.folder / f"{self.cfg.model.name}.safetensors", self.cfg.half, without)
        if isinstance(matrices := getattr(self.objective, "matrices", None), TrainableMatrices):
            save_matrices(matrices.method(), self.folder / "method.safetensors")
        write_json(self.folder / "summary.json", {**outcome, "config": self._settings()})

    @property
    def run_id(self) -> str:
        """The same for the same settings in the same folder: a resumed run keeps its W&B run."""
        return signature({**self.identity, "output": self.cfg.output})

    def run(self) -> Row:
        """Train to the end, or go on where an earlier run stopped; the summary, which is written, too."""
        self._alone(self._begin)
        before = self._compressed_and_before()
        main = self.engine.is_main_process
        report = reporter(self.cfg.logger, self.cfg.name, self.run_id, self.identity) if main else None
        trainer = Trainer(
            self.objective,
            self.train,
            self.test,
            self.recipe,
            self.folder,
            engine=self.engine,
            mixing=self._mixing(),
            report=report,
            score=self.kind.score,
        )
        trainer.resume()
        rows = trainer.fit()
        kept = trainer.keep_best()
        outcome = summary({**before, "finetuned": self._outcomes()}, self.kind.score, rows[-1]) | kept
        outcome["processes"] = self.engine.num_processes
        self._alone(lambda: self._write(outcome))
        return outcome
