"""What a composed config means: which device, dtype and arguments of ``ttf.apply``; does the model fit the task?"""

from __future__ import annotations

from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from ttf import processes
from ttf.arguments import AUTO, HOST_OPTIONS
from ttf.building import build
from ttf.config_store import models
from ttf.models.placement import Placement
from ttf.tasks.base import Task

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def check_pair(cfg: DictConfig) -> None:
    """Raise ``ValueError``, with a list of what fits, where the model is not for the task or has no such data set."""
    if cfg.task.name not in cfg.model.tasks:
        fitting = sorted(name for name, model in models().items() if cfg.task.name in model["tasks"])
        raise ValueError(f"model={cfg.model.name} is not for task={cfg.task.name}: choose one of {', '.join(fitting)}")
    if cfg.task.dataset not in cfg.task.data:
        known = ", ".join(map(str, cfg.task.data))
        raise ValueError(f"task.dataset={cfg.task.dataset} is none of task={cfg.task.name}: choose one of {known}")


def make_task(cfg: DictConfig) -> Task:
    """The task with its data set. Raises ``ValueError`` where that is not there, or a value is out of its range."""
    task: Task = build(cfg.task.evaluation, data=build(cfg.task.data[cfg.task.dataset]))
    return task


def pick_device(name: str) -> torch.device:
    """The torch device of a name, "auto" being a GPU if there is one. Raises ``ValueError`` if it is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and processes.count() > 1:
        name = f"cuda:{processes.local()}"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # the device meta has no values
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} is not available here: use device=cpu or device=auto") from error
    return device


def pick_placement(cfg: DictConfig) -> Placement | None:
    """Where Accelerate puts the parts of a vision-language model; None: the model is on one device.

    Raises:
        ValueError: another model, settings that have no effect with it, or see ``Placement``.
    """
    if cfg.get("device_map") is None:
        if cfg.get("offload") is not None:
            raise ValueError("offload would have no effect: it is a folder for what device_map puts on disk")
        return None
    if "vqa" not in cfg.model.tasks or cfg.model.weights != "transformers":
        raise ValueError(f"device_map is for vision-language models from the hub, and {cfg.model.name} is none")
    if cfg.device != "auto" or cfg.checkpoint:
        raise ValueError("device_map says where the weights of the hub's files go: leave device and checkpoint out")
    if cfg.throughput.batch_size:
        raise ValueError("the speed of a model over several devices is not measured: set throughput.batch_size=0")
    given: Any = OmegaConf.to_container(OmegaConf.create({"map": cfg.device_map}))
    return Placement(given["map"], cfg.offload, pick_dtype(cfg.dtype))


def pick_dtype(name: str) -> torch.dtype:
    """The torch dtype of a name. Raises ``ValueError`` for others than float32, float16, bfloat16."""
    if name not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {name!r}")
    return DTYPES[name]


def how_far(cfg: DictConfig) -> str:
    """The keep ratio of a config in words, or the budget that is given in its place."""
    return f"ratio {cfg.ratio}" if cfg.get("budget") is None else f"budget {cfg.budget}"


def reduction(cfg: DictConfig) -> dict[str, Any] | None:
    """Arguments of ``ttf.apply`` from the config groups method and schedule; None for method=none."""
    if cfg.method.get("method") == "none":
        return None
    resolved: Any = {name: OmegaConf.to_container(cfg[name], resolve=True) for name in ("method", "schedule")}
    chosen = {name: cfg[name] for name in ("recover_at", *HOST_OPTIONS) if cfg.get(name)}
    back = {"recover": cfg.recover, **chosen}
    if "_target_" in cfg.method:  # published settings: a method that brings its own schedule
        return {**back, **build(cfg.method, _convert_="object")}
    if "calibrate" in resolved["method"]:  # the method comes from the model, see Run
        return {**back, **resolved["method"]}
    options = {name: value for name, value in resolved["method"].items() if value is not None}
    common = {**back, **options}
    if "_target_" in cfg.schedule:
        return {**common, "schedule": build(cfg.schedule, _convert_="object")}
    return {**common, **_one_of(resolved["schedule"])}


def _one_of(schedule: dict[str, Any]) -> dict[str, Any]:
    """A keep ratio, or the budget that is given in its place, which alone says where to reduce, too."""
    if schedule.get("budget") is not None:
        return {name: value for name, value in schedule.items() if name != "ratio" and value is not None}
    if schedule.get("schedule") == AUTO:
        raise ValueError("schedule=auto follows from a budget: give one, budget=0.65")
    return {name: value for name, value in schedule.items() if name != "budget" and value is not None}
