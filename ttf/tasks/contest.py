"""Who is timed against whom: the configured method, named experiments, or all experiments of a table."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hydra import compose
from omegaconf import DictConfig

from ttf.cli import EXPERIMENTS, experiment_folders
from ttf.results.speed import BASE
from ttf.tasks.options import reduction


@dataclass(frozen=True)
class Contestant:
    """One way to run a model.

    Attributes:
        title: in words.
        options: arguments of ``ttf.apply``; None: uncompressed.
        experiments: names of the experiments that are this.
    """

    title: str
    options: dict[str, Any] | None
    experiments: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Contest:
    """What runs interleaved: one model in several ways, the uncompressed one first.

    Attributes:
        model: config group ``model``.
        contestants: without repeats.
    """

    model: DictConfig
    contestants: list[Contestant]

    def enter(self, title: str, options: dict[str, Any] | None, experiment: str | None = None) -> None:
        """Add a contestant, or the name of its experiment to the one that is the same."""
        same = next((c for c in self.contestants if c.options == options), None)
        if same is None:
            same = Contestant(title, options)
            self.contestants.append(same)
        if experiment:
            same.experiments.append(experiment)


def _contest(model: DictConfig) -> Contest:
    return Contest(model, [Contestant(BASE, None)])


def _configured(cfg: DictConfig) -> Contest:
    options = reduction(cfg)
    if options is None:
        raise ValueError("method=none compresses nothing: choose a method")
    contest = _contest(cfg.model)
    contest.enter(f"{cfg.method.get('method') or 'method'}, ratio {cfg.ratio}", options)
    return contest


def experiment(words: str, model: str) -> tuple[str, DictConfig, dict[str, Any] | None]:
    """An experiment with overrides, "fig4a/evit ratio=0.7", on a model.

    Returns:
        Its name, its composed config, and the arguments of ``ttf.apply``, None where it compresses nothing or needs
        images to calibrate on.
    """
    name, *overrides = words.split()
    chosen = compose("eval", [f"model={model}", f"experiment={name}", *overrides])
    options = reduction(chosen)
    return name, chosen, None if options is None or "calibrate" in options else options


def _named(cfg: DictConfig) -> Contest:
    contest = _contest(cfg.model)
    for words in cfg.experiments:
        name, chosen, options = experiment(words, cfg.model.name)
        if options is None:
            raise ValueError(f"experiment {name} cannot be timed: it compresses nothing, or needs images to calibrate")
        contest.enter(" ".join([chosen.title or name, *words.split()[1:]]), options, name)
    return contest


def _of_table(table: str) -> list[Contest]:
    files = sorted((EXPERIMENTS / table).glob("*.yaml"))
    if not files:
        raise ValueError(f"there is no table {table!r}: choose one of {', '.join(experiment_folders())}")
    contests: dict[str, Contest] = {}
    named = {f"{table}/{file.stem}" for file in files}
    configs = {name: compose("eval", [f"experiment={name}"]) for name in sorted(named)}
    for name, chosen in sorted(configs.items(), key=lambda item: item[1].finetuned):  # titles of the training-free ones
        contest = contests.setdefault(chosen.model.name, _contest(chosen.model))
        contest.enter(chosen.title or name, reduction(chosen), name)
    return list(contests.values())


def contests(cfg: DictConfig) -> list[Contest]:
    """What the config of ``scripts/benchmark.py`` asks for, one contest a model.

    Raises:
        ValueError: nothing is compressed, a method that needs images, or no such table.
    """
    if cfg.table:
        return _of_table(cfg.table)
    return [_named(cfg) if cfg.experiments else _configured(cfg)]
