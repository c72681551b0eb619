"""Benchmarks that a file of ``configs/tables`` lists by name, each with its overrides of ``configs/benchmark.yaml``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra import compose
from omegaconf import DictConfig, OmegaConf

from ttf import experiments
from ttf.unread import COMPRESSION, key_of

Values = Mapping[str, Any]
OWN_MODELS = ("model", "table")  # a benchmark that sets one of these is of certain models


def _composed(name: str, values: Values, given: Sequence[str]) -> DictConfig:
    """A benchmark's config: its values, and those of the command line before them."""
    values = {"table": None, "benchmark": name, **values}
    named = {key_of(override) for override in given} - {"table", "benchmark"}
    left = {key: value for key, value in values.items() if key not in named}
    groups = [f"{key}={value}" for key, value in left.items() if key in experiments.GROUPS]
    cfg = compose("benchmark", [*groups, *given])
    for key, value in left.items():
        if key not in experiments.GROUPS:
            OmegaConf.update(cfg, key, value)
    unread = [one for one in given if key_of(one).split(".")[0] in COMPRESSION]
    if unread and (cfg.experiments or cfg.table):
        raise ValueError(f"benchmark={name} has methods of its own: leave out {', '.join(unread)}")
    return cfg


def _own_models(values: Values) -> bool:
    return any(key in values for key in OWN_MODELS)


def _chosen(cfg: DictConfig, listed: Mapping[str, Values], given: Sequence[str]) -> Iterator[str]:
    """Names of the benchmarks: the one that is asked for, or all, those of other models left out where one is given."""
    models = [override for override in given if key_of(override) == "model"]
    if cfg.benchmark is None:
        yield from (name for name, values in listed.items() if not (models and _own_models(values)))
    elif cfg.benchmark not in listed:
        raise ValueError(f"{cfg.table} has no benchmark {cfg.benchmark!r}: choose one of {', '.join(listed)}")
    elif models and _own_models(listed[cfg.benchmark]):
        raise ValueError(f"benchmark={cfg.benchmark} has models of its own: leave out {models[0]}")
    else:
        yield cfg.benchmark


def _check_table(cfg: DictConfig, given: Sequence[str]) -> None:
    """A table of experiments says which models and methods are timed."""
    own = {"model", "experiments", "pixels", *COMPRESSION}
    unread = [override for override in given if key_of(override).split(".")[0] in own]
    if cfg.table and unread:
        raise ValueError(f"table={cfg.table} has models and methods of its own: leave out {', '.join(unread)}")


def configs(cfg: DictConfig, given: Sequence[str]) -> list[DictConfig]:
    """The configs of the benchmarks that are asked for; the config itself where its table lists none.

    Args:
        cfg: the composed config of ``scripts/benchmark.py``.
        given: the overrides on its command line, which count more than those of the file.

    Raises:
        ValueError: there is no such table or benchmark, or a model is given to a benchmark or table that has its own.
    """
    content = experiments.contents(cfg.table) if cfg.table else {}
    if "benchmarks" not in content:
        _check_table(cfg, given)
        return [cfg]
    listed, shared = content["benchmarks"], content.get("overrides", {})
    return [_composed(name, {**shared, **listed[name]}, given) for name in _chosen(cfg, listed, given)]
