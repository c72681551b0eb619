"""One run of ``scripts/search.py``: config in, file of a schedule out."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from omegaconf import DictConfig

from ttf.searched import check_writable
from ttf.searching.log import check_log, log_of
from ttf.searching.search import Settings, search
from ttf.settings import Evaluation, Search
from ttf.tasks.identity import OF_SCHEDULE
from ttf.tasks.run import Run, overrides
from ttf.unread import key_of

OF_EVALUATION = {one.name for one in fields(Evaluation)}
# what is said of a search alone: the command for other images has the rest
OF_SEARCH = {one.name for one in fields(Search)} - OF_EVALUATION | {"batch_size", "out", "budget", "skip", "schedule"}


def searched(cfg: DictConfig) -> str:
    """Search and write; what there is to say of it.

    Raises:
        ValueError: a method that brings its own schedule, or as ``ttf.search``.
    """
    check_writable(cfg.out)
    check_log(log_of(cfg.out))
    if cfg.task.name == "vqa":
        raise ValueError(
            "a search compares outputs of one pass, and task=vqa has answers: search task=cls of the tower"
        )
    run = Run(cfg)
    if run.reduction is None or "calibrate" in run.reduction or "_target_" in cfg.method:
        raise ValueError("this method leaves no numbers of tokens to search: choose another")
    options = {name: value for name, value in run.reduction.items() if name not in OF_SCHEDULE}
    model, _ = run.load()
    images = run.task.images(range(cfg.images))
    if len(images) < cfg.images:
        raise ValueError(f"images={cfg.images}, and there are {len(images)}: take fewer")
    how = Settings(
        evaluations=cfg.evaluations,
        seed=cfg.seed,
        patience=cfg.patience,
        batch=cfg.batch_size,
        memory=cfg.memory,
        start=cfg.start or (),
        out=Path(cfg.out),
        provenance={
            "model": cfg.model.name,
            "command": _command(),
            "start": [Path(one).name for one in cfg.start or ()],
        },
    )
    found = search(model.to(run.device, run.dtype), images, cfg.budget, objective=cfg.compare, settings=how, **options)
    return _said(found.counts, Path(cfg.out), cfg)


def _command() -> str:
    """The command, without places on this machine."""
    return " ".join(["ttf search", *(one for one in overrides() if not one.startswith("start="))])


def _said(counts: tuple[int, ...], path: Path, cfg: DictConfig) -> str:
    same = [one for one in overrides() if key_of(one) not in OF_SEARCH]
    again = [*same, "schedule=searched", f"schedule.file={path}", f"skip={cfg.skip + cfg.images}"]
    return f"{path}: {', '.join(map(str, counts))} patch tokens\non other images: ttf eval {' '.join(again)}"
