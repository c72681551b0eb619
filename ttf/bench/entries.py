"""What is timed beside what: the configured method, named experiments, or all experiments of a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from hydra import compose
from omegaconf import DictConfig, OmegaConf

from ttf import experiments
from ttf.results.costs import BASE
from ttf.tasks.options import how_far, reduction
from ttf.unread import check_once

OPEN = "=?"  # an override whose value is found by counting


@dataclass(frozen=True)
class Entry:
    """One way to run a model.

    Attributes:
        title: in words.
        options: arguments of ``ttf.apply``, 1 for what is open; None: uncompressed.
        experiments: names of the experiments that are this.
        command: the name of an experiment with its overrides.
        fitted_on: the images that a fitted method was fitted on, in words.
    """

    title: str
    options: dict[str, Any] | None
    experiments: list[str] = field(default_factory=list)
    command: str = ""
    fitted_on: str = ""

    @property
    def is_open(self) -> bool:
        """Whether its budget is still to be matched to that of the first entry that is not open."""
        return OPEN in self.command

    @property
    def is_unfitted(self) -> bool:
        """Whether its method is still to be fitted to the model."""
        return "calibrate" in (self.options or {})


@dataclass(frozen=True)
class Benchmark:
    """What runs interleaved: one model in several ways, the uncompressed one first.

    Attributes:
        model: config group ``model``, with the size of the images in ``network`` where it is not the model's own.
        entries: without repeats.
        name: what benchmarks of different models and sizes have in common; rows replace older rows of their benchmark.
        pixels: side of the images; None: the model's own.
    """

    model: DictConfig
    entries: list[Entry]
    name: str
    pixels: int | None = None

    def add(self, new: Entry) -> None:
        """Add an entry, or the names of its experiments to the one that is the same."""
        known = [entry for entry in self.entries if not entry.is_open and not new.is_open]
        same = next((entry for entry in known if entry.options == new.options), None)
        if same is None:
            self.entries.append(replace(new, experiments=[*new.experiments]))
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


def _benchmark(model: DictConfig, name: str, pixels: int | None = None) -> Benchmark:
    return Benchmark(sized(model, pixels), [Entry(BASE, None)], name, pixels)


def _configured(cfg: DictConfig, pixels: int | None) -> Benchmark:
    options = reduction(cfg)
    if options is None:
        raise ValueError("method=none compresses nothing: choose a method")
    title = f"{cfg.method.get('method') or 'method'}, {how_far(cfg)}"
    benchmark = _benchmark(cfg.model, cfg.benchmark or title, pixels)
    benchmark.add(Entry(title, options))
    return benchmark


def experiment(command: str, model: str | None = None) -> tuple[str, DictConfig, dict[str, Any] | None]:
    """An experiment with overrides, "fig4a/evit ratio=0.7", on a model of ``configs/models.yaml`` or on its own.

    Returns:
        Its name, its composed config, and the arguments of ``ttf.apply``, None where it compresses nothing. A method
        that is still to be fitted has ``calibrate`` among them.
    """
    experiments.register([command])
    name, *overrides = command.split()
    check_once(overrides)
    on = [] if model is None else [f"model={model}"]
    chosen = compose("eval", [*on, f"experiment={name}", *overrides])
    return name, chosen, reduction(chosen)


@cache
def _entry(command: str) -> Entry:
    name, chosen, options = experiment(command.replace(OPEN, "=1"))
    if options is None:
        raise ValueError(f"experiment {name} cannot be timed: it compresses nothing")
    title = " ".join([chosen.title or name, *command.split()[1:]])
    return Entry(title, options, [name], command)


def _named(cfg: DictConfig, pixels: int | None, entries: Sequence[Entry]) -> Benchmark:
    benchmark = _benchmark(cfg.model, cfg.benchmark or "; ".join(cfg.experiments), pixels)
    for entry in entries:
        benchmark.add(entry)
    return benchmark


def _of_table(table: str, rows_of: str) -> list[Benchmark]:
    names = sorted(row.name for row in experiments.load(table).rows if row.title)
    configs = {name: experiment(name)[1] for name in names}
    found: dict[str, Benchmark] = {}
    for name, chosen in sorted(configs.items(), key=lambda item: item[1].finetuned):  # titles of the training-free ones
        benchmark = found.setdefault(chosen.model.name, _benchmark(chosen.model, rows_of))
        benchmark.add(Entry(chosen.title or name, reduction(chosen), [name]))
    return list(found.values())


def benchmarks(cfg: DictConfig) -> list[Benchmark]:
    """What the config of ``scripts/benchmark.py`` asks for, one benchmark a model and size of the images.

    Raises:
        ValueError: nothing is compressed, or there is no such table.
    """
    if cfg.table:
        return _of_table(cfg.table, cfg.benchmark or cfg.table)
    sizes = cfg.pixels or [None]
    if cfg.experiments:
        entries = [_entry(command) for command in cfg.experiments]
        return [_named(cfg, pixels, entries) for pixels in sizes]
    return [_configured(cfg, pixels) for pixels in sizes]
