"""Options of config groups that have no file of their own: models (``configs/models.yaml``), methods
(``methods.yaml``) and trainings (files of ``trainings``).

``model=NAME``, ``method=NAME`` and ``experiment=NAME`` mean entries of these files, which are made known to Hydra here.
A file ``model/NAME.yaml`` in a folder given by ``--config-dir`` works beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

PACKAGE = Path(__file__).resolve().parent
PLACES = (PACKAGE / "configs", PACKAGE.parent / "configs")  # of a wheel, of a clone
CONFIGS = next(folder for folder in PLACES if folder.is_dir())
GROUPS = {"task", "model", "method", "schedule", "logger", "data", "augment", "objective"}  # a text chooses an option
NO_ENTRY = "."  # begins names of what entries share


def files(name: str) -> list[Path]:
    """Where entries stand: ``configs/NAME.yaml``, or the files of the folder ``configs/NAME``."""
    one = CONFIGS / f"{name}.yaml"
    return [one] if one.is_file() else sorted((CONFIGS / name).glob("*.yaml"))


@cache
def entries(name: str) -> dict[str, dict[str, Any]]:
    """The entries of ``files(name)``, by name, as they stand there."""
    content: dict[str, Any] = {}
    for file in files(name):
        content |= yaml.load(file.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return {entry: values for entry, values in content.items() if not entry.startswith(NO_ENTRY)}


@cache
def models() -> dict[str, dict[str, Any]]:
    """The models, each with its name."""
    return {name: {"name": name, **entry} for name, entry in entries("models").items()}


def choices(group: str) -> dict[str, dict[str, Any]]:
    """What ``group=NAME`` can mean beside files: the entries of models or methods; none for other groups."""
    return models() if group == "model" else entries("methods") if group == "method" else {}


def model(name: str) -> DictConfig:
    """The config of a model. Raises ``ValueError`` where there is no such entry."""
    if name not in models():
        raise ValueError(f"there is no model={name}: choose one of {', '.join(sorted(models()))}")
    return OmegaConf.create({key: value for key, value in models()[name].items() if key != "defaults"})


def experiment(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The config that ``experiment=NAME`` stands for.

    Args:
        name: of the experiment.
        values: a text under a group's name chooses an option there; dotted keys reach into what was chosen.
    """
    chosen = {key: value for key, value in values.items() if key in GROUPS and isinstance(value, str)}
    node = OmegaConf.create({"name": name})
    for key, value in values.items():
        if key not in chosen:
            OmegaConf.update(node, key, value)
    plain: Any = OmegaConf.to_container(node)
    return {"defaults": [*({f"override /{key}": value} for key, value in chosen.items()), "_self_"], **plain}


def options(group: str) -> list[str]:
    """Names that a config group can be set to: files of ``configs`` and entries."""
    files = [file.stem for file in (CONFIGS / group).glob("*.yaml")]
    return sorted([*files, *choices(group)])


def store(group: str, name: str, make: Callable[[], dict[str, Any]]) -> None:
    """Make ``group=name`` known to Hydra, once; ``make`` gives its config."""
    known = ConfigStore.instance().repo
    for part in group.split("/"):
        known = known.get(part, {})
    if f"{name}.yaml" not in known:
        package = "_global_" if group.startswith("experiment") else None
        ConfigStore.instance().store(group=group, name=name, node=make(), package=package, provider="ttf")
