"""Settings that would have no effect: given twice, not read by the command, or not beside what was chosen.

Imports neither torch nor timm.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

KNOBS = ("ratio", "budget", "kappa", "tau", "blocks")  # read where a method or a schedule has ${...} of them
FOR_COMPRESSION = ("recover", "recover_at", "windows", "shift", "reduce_after")
COMPRESSION = {"method", "schedule", *KNOBS, *FOR_COMPRESSION}
IMAGES = {"task", "limit", "skip", "seed", "workers", "on_bad_image"}
ARITHMETIC = {"seed", "device", "dtype"}
MODEL = {"model", "experiment", "name", "title"}
PICTURE = {*MODEL, *IMAGES, "checkpoint"}
GROUPS = {"task", "model", "method", "schedule", "logger", "throughput", "experiment"}
# what commands read of the settings that they share with ttf eval, which reads all but those of the last line
READ: dict[str, set[str]] = {
    "search": {*PICTURE, *ARITHMETIC, *COMPRESSION, "finetuned", "batch_size", "out"}
    - {"ratio", "blocks", "limit", "workers", "schedule"},
    "demo": {*PICTURE, *ARITHMETIC, *COMPRESSION, "batch_size", "throughput", "force"} - {"method"},
    "visualize": {*PICTURE, *COMPRESSION, "finetuned"},
    "masks": {*PICTURE, *COMPRESSION},
    "answers": {*PICTURE, *COMPRESSION},
    "matrices": {*PICTURE, "finetuned", "ratio"},
    "benchmark": {*MODEL, *ARITHMETIC, *COMPRESSION, "force"},
    "roofline": {*MODEL, *ARITHMETIC, *COMPRESSION},
    "operators": ARITHMETIC,
    "contract": {"device"},
    "count": {*MODEL, *COMPRESSION, "seed"},
    "doctor": {"task"},
}
OF_GROUPS = r"\+(task|throughput|paths|logger)\.\w+"  # keys that would be added where nobody looks for further ones
OF_EVALUATION = {"device_map", "offload"}  # read by ttf eval alone


@dataclass(frozen=True)
class Beside:
    """Settings that are read where something else is chosen, and nowhere else.

    Attributes:
        commands: that have them.
        keys: of the settings.
        read: whether a config of these commands reads them: true or false.
        where: when that is, in words behind "read only".
    """

    commands: tuple[str, ...]
    keys: tuple[str, ...]
    read: Callable[[DictConfig], Any]
    where: str


def _task(*names: str) -> Callable[[DictConfig], bool]:
    return lambda cfg: cfg.task.name in names


SIDE_BY_SIDE = ("depth", "det", "vqa")  # of ttf visualize: predictions in columns
PICTURES = ("visualize", "masks", "answers")
CONDITIONS = (
    Beside(("eval", "demo"), ("throughput.rounds",), lambda c: c.throughput.batch_size != 0, "where speed is measured"),
    Beside(("eval",), ("batch_size",), _task("cls", "vqa"), "of task=cls and vqa (of task=seg task.window_batch)"),
    Beside(("benchmark",), ("minutes",), lambda c: c.jobs is not None, "where jobs is given"),
    Beside(("benchmark",), ("force",), lambda c: c.csv or c.table, "where csv or table is given"),
    Beside(("benchmark",), tuple(COMPRESSION), lambda c: c.experiments is None, "where experiments is not given"),
    Beside(PICTURES, tuple(COMPRESSION), lambda c: c.ways is None, "of the experiments in ways, or where ways=null"),
    Beside(("visualize",), ("ways",), _task(*SIDE_BY_SIDE), "of task=depth, det and vqa"),
    Beside(("visualize",), ("depth_png",), _task("depth"), "of task=depth"),
    Beside(("visualize",), ("finetuned",), _task("cls"), "of task=cls"),
    Beside(("finetune",), ("checkpoint",), lambda c: c.pretrained or c.encoder is not None, "where pretrained=true"),
    Beside(("finetune",), ("finetuned",), lambda _: False, "by ttf eval, which takes the weights"),
    Beside(("sweep",), ("models", "force", "publish"), lambda c: not c.list, "without --list, which measures nothing"),
    Beside(("figure",), ("table",), lambda _: False, "by ttf table"),
)


def key_of(override: str) -> str:
    """The key of an override of the command line."""
    return override.partition("=")[0].lstrip("+~")


def _top(override: str) -> str:
    return re.split(r"[./@:]", key_of(override))[0]


def check_once(given: Iterable[str]) -> None:
    """Raise ``ValueError`` where a key is given twice: the first value would have no effect."""
    given = [one for one in given if "=" in one and not one.startswith(("-", "~"))]
    for key, count in Counter(map(key_of, given)).items():
        if count > 1:
            both = " and ".join(one for one in given if key_of(one) == key)
            raise ValueError(f"{key} is given {count} times, {both}: give it once")


def check_command(command: str, shared: Iterable[str], cfg: DictConfig, given: Sequence[str]) -> None:
    """Raise ``ValueError`` for an override that a command does not read.

    Args:
        command: its name.
        shared: settings that it has in common with ``ttf eval``, beside the groups.
        cfg: its composed config.
        given: overrides of the command line.
    """
    added = [one for one in given if one.startswith("+") and not (one.startswith("++") and key_of(one) in shared)]
    loose = [key_of(one) for one in added if re.fullmatch(r"\w+", key_of(one))]
    loose += [key_of(one) for one in given if re.fullmatch(OF_GROUPS, one.partition("=")[0])]
    unread = {*shared, *GROUPS} - READ[command] if command in READ else OF_EVALUATION if command != "eval" else set()
    loose += [key_of(one) for one in given if _top(one) in unread]
    if loose:
        raise ValueError(f"{', '.join(loose)} would have no effect: no such setting is read by this command")
    _check_beside(command, cfg, given)


def _check_beside(command: str, cfg: DictConfig, given: Sequence[str]) -> None:
    keys = {name for one in given for name in (key_of(one), _top(one))}
    for one in CONDITIONS:
        unread = [key for key in one.keys if key in keys]
        if command in one.commands and unread and not one.read(cfg):
            raise ValueError(f"{', '.join(sorted(unread))} would have no effect: read only {one.where}")


def _raw(node: Any) -> dict[str, Any]:
    """A group with its interpolations as they are written."""
    raw: Any = OmegaConf.to_container(node, resolve=False) if node is not None else {}
    return raw or {}


def _names(node: Any) -> list[str]:
    return [name for name in _raw(node) if name not in ("method", "_target_")]


def _own_schedule(method: dict[str, Any]) -> bool:
    """Whether a method brings its own schedule: published counts, or matrices from a calibration."""
    return "_target_" in method or "calibrate" in method


def check_compression(cfg: DictConfig, given: Sequence[str]) -> None:
    """Raise ``ValueError`` for an override that neither the method nor the schedule reads.

    Args:
        cfg: a composed config with the groups method and schedule.
        given: overrides of the command line, ``KEY=VALUE``.
    """
    method, schedule = _raw(cfg.method), _raw(cfg.schedule)
    compressing, own = method.get("method") != "none", _own_schedule(method)
    text = f"{method} {'' if own or not compressing else schedule}"
    keys = [key_of(one) for one in given]
    if {"ratio", "budget"} <= set(keys):
        raise ValueError("ratio and budget both say how far to reduce: give one or the other")
    unread = [key for key in keys if key in KNOBS and f"${{{key}}}" not in text]
    unread += [key for key in keys if key in FOR_COMPRESSION and not compressing]
    if own or not compressing:
        unread += [key for key in keys if key.split(".")[0] == "schedule"]
    if not unread:
        return
    read = [knob for knob in KNOBS if f"${{{knob}}}" in text]
    read += [f"method.{name}" for name in _names(cfg.method) if name not in KNOBS]
    read += [] if own or not compressing else [f"schedule.{n}" for n in _names(cfg.schedule) if n not in KNOBS]
    name = method.get("method") or "this method"
    what = f"{name} with this schedule reads {', '.join(read)}" if read else f"{name} reads none of these"
    raise ValueError(f"{', '.join(dict.fromkeys(unread))} would have no effect: {what}")
