"""Settings of a run that are no group of their own: types, ranges, and whether the chosen method reads them.

Imports neither torch nor timm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf

from ttf.checks import check_types

WORDS = {
    "dtype": ("float32", "float16", "bfloat16"),
    "on_bad_image": ("stop", "skip"),
    "on_missing": ("stop", "skip"),
}
RANGES: dict[str, tuple[float, float, str]] = {  # lowest, highest, in words; of a value that is given
    "kappa": (-1, 1, "the gate threshold (Eq. 3), in [-1, 1]"),
    "limit": (1, float("inf"), "a number of images, at least 1"),
    "batch_size": (1, float("inf"), "images that go through the model together, at least 1"),
    "workers": (0, float("inf"), "processes that read images, 0 or more"),
}
KNOBS = ("ratio", "kappa", "tau", "blocks")  # read where a method or a schedule has ${...} of them
FOR_COMPRESSION = ("recover", "recover_at", "windows", "shift", "reduce_after")


@dataclass(frozen=True)
class Settings:
    """Of ``configs/eval.yaml``; see there for what each says.

    Raises:
        ValueError: a value of another type, or out of its range.
    """

    ratio: float = 0.7
    kappa: float | None = None
    tau: float | None = None
    blocks: Sequence[int] | None = None
    recover: bool | str = False
    recover_at: str | None = None
    windows: str | None = None
    shift: str | None = None
    reduce_after: str | None = None
    checkpoint: str | None = None
    finetuned: bool = False
    on_missing: Literal["stop", "skip"] = "stop"
    limit: int | None = None
    seed: int = 0
    batch_size: int = 50
    workers: int = 0
    on_bad_image: Literal["stop", "skip"] = "stop"
    device: str = "auto"
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    out: str | None = None
    force: bool = False

    def __post_init__(self) -> None:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        check_types(Settings, values)
        for name, words in WORDS.items():
            if values[name] not in words:
                raise ValueError(f"{name} must be one of {', '.join(words)}, got {values[name]!r}")
        for name, (low, high, meaning) in RANGES.items():
            if values[name] is not None and not low <= values[name] <= high:
                raise ValueError(f"{name} is {meaning}, got {values[name]}")
        if not 0 < self.ratio <= 1:
            raise ValueError(f"ratio is the share of tokens to keep and must be in (0, 1], got {self.ratio}")
        if self.tau is not None and not self.tau > 0:
            raise ValueError(f"tau is the inverse temperature (Eq. 5) and must be above 0, got {self.tau}")


def _raw(node: Any) -> dict[str, Any]:
    """A group with its interpolations as they are written."""
    raw: Any = OmegaConf.to_container(node, resolve=False) if node is not None else {}
    return raw or {}


def _names(node: Any) -> list[str]:
    return [name for name in _raw(node) if name not in ("method", "_target_")]


def _own_schedule(method: dict[str, Any]) -> bool:
    """Whether a method brings its own schedule: published counts, or matrices from a calibration."""
    return "_target_" in method or "calibrate" in method


def check_read(cfg: DictConfig, given: Sequence[str]) -> None:
    """Raise ``ValueError`` for an override that neither the method nor the schedule reads.

    Args:
        cfg: a composed config with the groups method and schedule.
        given: overrides of the command line, ``KEY=VALUE``.
    """
    method, schedule = _raw(cfg.method), _raw(cfg.schedule)
    compressing, own = method.get("method") != "none", _own_schedule(method)
    text = f"{method} {'' if own or not compressing else schedule}"
    keys = [one.split("=")[0].lstrip("+~") for one in given]
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


def check(cfg: DictConfig, given: Sequence[str] = ()) -> None:
    """Check a composed config before anything is loaded.

    Args:
        cfg: of any script.
        given: overrides of the command line.

    Raises:
        ValueError: a value of another type or out of its range, one that has no effect, or one that no script reads.
    """
    known = {field.name for field in fields(Settings)}
    values = {str(name): cfg[name] for name in cfg if name in known}
    plain: Any = OmegaConf.to_container(OmegaConf.create(values), resolve=True)
    Settings(**plain)
    added = [one.split("=")[0].lstrip("+") for one in given if one.startswith("+")]
    loose = [key for key in added if "." not in key and "/" not in key and "@" not in key]
    if loose:
        raise ValueError(f"{', '.join(loose)} would have no effect: no such setting is read by this command")
    if "method" in cfg and "schedule" in cfg:
        check_read(cfg, given)
