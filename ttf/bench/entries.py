"""Who is timed against whom: the configured method, named experiments, or all experiments of a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hydra import compose
from omegaconf import DictConfig, OmegaConf

from ttf.cli import EXPERIMENTS, experiment_folders
from ttf.results.speed import BASE
from ttf.tasks.options import reduction

OPEN = "=?"  # an override whose value is found by counting


@dataclass(frozen=True)
class Contestant:
    """One way to run a model.

    Attributes:
        title: in words.
        options: arguments of ``ttf.apply``, 1 for what is open; None: uncompressed.
        experiments: names of the experiments that are this.
        words: of a named experiment, with its overrides.
    """

    title: str
    options: dict[str, Any] | None
    experiments: list[str] = field(default_factory=list)
    words: str = ""

    @property
    def is_open(self) -> bool:
        """Whether its cost is still to be chosen: that of the first contestant that is not open."""
        return OPEN in self.words


@dataclass(frozen=True)
class Contest:
    """What runs interleaved: one model in several ways, the uncompressed one first.

    Attributes:
        model: config group ``model``, with the size of the images in ``network`` where it is not the model's own.
        contestants: without repeats.
        kind: what contests of different models and sizes have in common; rows of one replace older rows of its kind.
        pixels: side of the images; None: the model's own.
    """

    model: DictConfig
    contestants: list[Contestant]
    kind: str
    pixels: int | None = None

    def enter(self, new: Contestant) -> None:
        """Add a contestant, or the names of its experiments to the one that is the same."""
        settled = [c for c in self.contestants if not c.is_open and not new.is_open]
        same = next((c for c in settled if c.options == new.options), None)
        if same is None:
            self.contestants.append(replace(new, experiments=[*new.experiments]))
        else:
            same.experiments.extend(new.experiments)


def sized(model: DictConfig, pixels: int | None) -> DictConfig:
    """A config of group ``model`` for images of another side; None: its own. Raises ``ValueError`` outside of timm."""
    if pixels is None:
        return model
    if not model.network._target_.startswith("timm."):
        raise ValueError(f"pixels sets the size of models of timm, and {model.name} is none: leave it out")
    plain: Any = OmegaConf.to_container(model, resolve=True)
    return OmegaConf.create({**plain, "network": {**plain["network"], "img_size": pixels}})


def _contest(model: DictConfig, kind: str, pixels: int | None = None) -> Contest:
    return Contest(sized(model, pixels), [Contestant(BASE, None)], kind, pixels)


def _configured(cfg: DictConfig, pixels: int | None) -> Contest:
    options = reduction(cfg)
    if options is None:
        raise ValueError("method=none compresses nothing: choose a method")
    title = f"{cfg.method.get('method') or 'method'}, ratio {cfg.ratio}"
    contest = _contest(cfg.model, cfg.contest or title, pixels)
    contest.enter(Contestant(title, options))
    return contest


def experiment(words: str, model: str | None = None) -> tuple[str, DictConfig, dict[str, Any] | None]:
    """An experiment with overrides, "fig4a/evit ratio=0.7", on a model of ``configs/model`` or on its own.

    Returns:
        Its name, its composed config, and the arguments of ``ttf.apply``, None where it compresses nothing or needs
        images to calibrate on.
    """
    name, *overrides = words.split()
    on = [] if model is None else [f"model={model}"]
    chosen = compose("eval", [*on, f"experiment={name}", *overrides])
    options = reduction(chosen)
    return name, chosen, None if options is None or "calibrate" in options else options


def _contestant(words: str) -> Contestant:
    name, chosen, options = experiment(words.replace(OPEN, "=1"))
    if options is None:
        raise ValueError(f"experiment {name} cannot be timed: it compresses nothing, or needs images to calibrate")
    title = " ".join([chosen.title or name, *words.split()[1:]])
    return Contestant(title, options, [name], words)


def _named(cfg: DictConfig, pixels: int | None, entries: Sequence[Contestant]) -> Contest:
    contest = _contest(cfg.model, cfg.contest or "; ".join(cfg.experiments), pixels)
    for entry in entries:
        contest.enter(entry)
    return contest


def _of_table(table: str) -> list[Contest]:
    files = sorted((EXPERIMENTS / table).glob("*.yaml"))
    if not files:
        raise ValueError(f"there is no table {table!r}: choose one of {', '.join(experiment_folders())}")
    contests: dict[str, Contest] = {}
    named = {f"{table}/{file.stem}" for file in files}
    configs = {name: compose("eval", [f"experiment={name}"]) for name in sorted(named)}
    for name, chosen in sorted(configs.items(), key=lambda item: item[1].finetuned):  # titles of the training-free ones
        contest = contests.setdefault(chosen.model.name, _contest(chosen.model, table))
        contest.enter(Contestant(chosen.title or name, reduction(chosen), [name]))
    return list(contests.values())


def contests(cfg: DictConfig) -> list[Contest]:
    """What the config of ``scripts/benchmark.py`` asks for, one contest a model and size of the images.

    Raises:
        ValueError: nothing is compressed, a method that needs images, or no such table.
    """
    if cfg.table:
        return _of_table(cfg.table)
    sizes = cfg.pixels or [None]
    if cfg.experiments:
        entries = [_contestant(words) for words in cfg.experiments]
        return [_named(cfg, pixels, entries) for pixels in sizes]
    return [_configured(cfg, pixels) for pixels in sizes]
