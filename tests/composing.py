"""Configs as Hydra composes them, each once a process: it takes half a second."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

import ttf.cli  # noqa: F401  # registers what the configs resolve with
from ttf import experiments

CONFIGS = str(Path(__file__).parents[1] / "configs")


@cache
def _composed(script: str, overrides: tuple[str, ...]) -> DictConfig:
    experiments.register(overrides)
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        return compose(script, list(overrides))


def composed(script: str, *overrides: str) -> DictConfig:
    """The config of a script.

    Overrides of plain values that hold a folder of the test are put in after composing, so that tests share the rest.
    """
    own = [one for one in overrides if one.startswith("paths.")]
    config = copy.deepcopy(_composed(script, tuple(one for one in overrides if one not in own)))
    for one in own:
        key, value = one.split("=", 1)
        config.paths[key.removeprefix("paths.")] = value
    return config
