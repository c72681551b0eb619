"""Experiments: one file a table or figure in ``configs/tables``, its rows with their overrides, sweeps and scales.

A file has ``title``, ``layout`` (how it is drawn), ``rows`` and, where wanted, what all rows share (``overrides``),
axes of a sweep (``sweep``), and what differs at a scale (``scales``: tiny, mini or paper). A row is a mapping of
overrides of ``configs/eval.yaml``; five of its keys are not: ``title``, ``paper`` (what the paper prints of it),
``sweep`` (in place of the file's), ``scales`` (overrides at a scale; ``sweep`` among them adds axes) and ``only`` (the
scales it is for). A row without a title is quoted from the paper, and not run.

``experiment=table6/kappa_0.3`` is a row by its name, with the overrides of the file and its own.
"""

from __future__ import annotations

import fnmatch
import itertools
import pickle
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError

from ttf import config_store
from ttf.config_store import CONFIGS, GROUPS
from ttf.unread import check_once

TABLES = CONFIGS / "tables"
OF_ROW = {"title", "paper", "sweep", "scales", "only"}
OF_TABLE = {"title", "layout", "overrides", "sweep", "scales", "rows"}
HALF = "$half"  # in an axis: the scale's ``half``, a number of images
ALL_MODELS = "models"  # the layout of tables that show what the paper prints, whatever was measured
BENCHMARKS = "benchmarks"  # the layout of files that list benchmarks, which ``ttf.bench`` reads
Values = Mapping[str, Any]


@dataclass(frozen=True)
class Experiment:
    """A row of a table.

    Attributes:
        name: "TABLE/ROW".
        title: its line in tables and figures; "" where it is quoted alone.
        overrides: of ``configs/eval.yaml``; dotted keys reach into groups.
        sweep: axes: an override to its values.
        scales: overrides at a scale, with further axes under ``sweep``.
        only: the scales it is for; empty: all.
        paper: what the paper prints.
    """

    name: str
    title: str = ""
    overrides: Values = field(default_factory=dict)
    sweep: Values = field(default_factory=dict)
    scales: Mapping[str, Values] = field(default_factory=dict)
    only: tuple[str, ...] = ()
    paper: Values = field(default_factory=dict)

    def node(self) -> dict[str, Any]:
        """The config that ``experiment=NAME`` stands for."""
        return config_store.experiment(self.name, {"title": self.title, **self.overrides})


@dataclass(frozen=True)
class Planned:
    """One run of an experiment: the overrides that its place in a sweep and the scale add."""

    experiment: str
    title: str
    overrides: tuple[str, ...]

    @property
    def address(self) -> str:
        """What it is found by among the rows."""
        return " ".join([self.experiment, *self.overrides])

    @property
    def named(self) -> dict[str, Any]:
        """What its row is called in tables."""
        return {"name": self.experiment, "overrides": list(self.overrides), "title": self.title}

    @property
    def arguments(self) -> tuple[str, ...]:
        """Of ``scripts/eval.py``."""
        return (f"experiment={self.experiment}", *self.overrides)


@dataclass(frozen=True)
class Table:
    """A file of ``configs/tables``.

    Attributes:
        name: of the file.
        title: in words.
        layout: how it is drawn, see ``ttf.report``.
        rows: in order.
        scales: overrides at each scale, with axes under ``sweep``.
        options: the file's other keys, for its layout.
    """

    name: str
    title: str
    layout: str
    rows: tuple[Experiment, ...]
    scales: Mapping[str, Values]
    options: Values

    def models(self, scale: str) -> list[str] | None:
        """The models of a scale, then those that rows have there in place of it; None where rows name their own."""
        found = self.scales.get(scale, {})
        one = found.get("model", [])
        whole = found.get("sweep", {}).get("model", [one] if one else [])
        own = (row.scales.get(scale, {}).get("model") for row in self.rows)
        return list(dict.fromkeys([*whole, *filter(None, own)])) if whole else None

    def planned(self, scale: str) -> list[Planned]:
        """All runs at a scale. Raises ``ValueError`` for a scale that the table does not have."""
        if self.scales and scale not in self.scales:
            raise ValueError(f"{self.name} has no scale {scale!r}: choose one of {', '.join(self.scales)}")
        whole = self.scales.get(scale, {})
        rows = [row for row in self.rows if row.title and (not row.only or scale in row.only)]
        return list(itertools.chain.from_iterable(_runs(row, whole, row.scales.get(scale, {})) for row in rows))


def _text(value: Any) -> str:
    """A value as Hydra's command line reads it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_text, value))}]"
    return str(value)


def _runs(row: Experiment, whole: Values, own: Values) -> Iterator[Planned]:
    axes = {**whole.get("sweep", {}), **row.sweep, **own.get("sweep", {})}
    axes = {key: [whole["half"] if value == HALF else value for value in values] for key, values in axes.items()}
    fixed = {key: value for key, value in {**whole, **own}.items() if key not in {"sweep", "half", *axes}}
    for point in itertools.product(*axes.values()):
        values = {**fixed, **dict(zip(axes, point, strict=True))}
        yield Planned(row.name, row.title, tuple(f"{key}={_text(value)}" for key, value in sorted(values.items())))


def _row(table: str, name: str, given: Values, shared: Values, sweep: Values) -> Experiment:
    own = {key: value for key, value in given.items() if key not in OF_ROW}
    return Experiment(
        f"{table}/{name}",
        str(given.get("title", "")),
        {**shared, **own},
        given.get("sweep", sweep) or {},
        given.get("scales", {}),
        tuple(given.get("only", ())),
        given.get("paper", {}),
    )


def names_of_tables() -> list[str]:
    """Names of the tables and figures."""
    return sorted(file.stem for file in TABLES.glob("*.yaml"))


@cache
def contents(table: str) -> dict[str, Any]:
    """A file of ``configs/tables`` as it is. Raises ``ValueError`` where there is no such table."""
    file = TABLES / f"{table}.yaml"
    if not file.is_file():
        raise ValueError(f"there is no table {table!r}: choose one of {', '.join(names_of_tables())}")
    content: dict[str, Any] = yaml.load(file.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return content


@cache
def load(table: str) -> Table:
    """A table by its name. Raises ``ValueError`` where there is no such table, or it lists benchmarks."""
    content = contents(table)
    if "rows" not in content:
        raise ValueError(f"{table} lists benchmarks: ttf benchmark table={table}")
    shared, sweep = content.get("overrides", {}), content.get("sweep", {})
    rows = tuple(_row(table, str(name), given, shared, sweep) for name, given in content["rows"].items())
    options = {key: value for key, value in content.items() if key not in OF_TABLE}
    return Table(table, content["title"], content["layout"], rows, content.get("scales", {}), options)


@cache
def experiments() -> dict[str, Experiment]:
    """The rows of all tables that can be run, by name."""
    loaded = [load(table) for table in names_of_tables() if "rows" in contents(table)]
    return {row.name: row for table in loaded for row in table.rows if row.title}


@cache
def names() -> list[str]:
    """Names of all experiments: rows of tables, and trainings."""
    return sorted([*experiments(), *config_store.entries("trainings")])


def check_models(table: Table, models: Sequence[str] | None, known: Collection[str]) -> None:
    """Raise ``ValueError`` where only some models are to be drawn, and the table shows none of these.

    Args:
        table: what is drawn.
        models: None: all of them.
        known: models that it has; none: that is said elsewhere.
    """
    if models is None:
        return
    if table.layout == ALL_MODELS:
        raise ValueError(f"models would have no effect: {table.name} has every line that the paper prints")
    unknown = [name for name in models if name not in known]
    if known and unknown:
        raise ValueError(f"{table.name} has no rows of {', '.join(unknown)}: choose of {', '.join(sorted(known))}")


def matching(pattern: str) -> list[str]:
    """Names of the experiments that fit a pattern such as "table6/*". Raises ``ValueError`` where none does."""
    found = fnmatch.filter(names(), pattern)
    if not found:
        folders = sorted({name.split("/")[0] for name in names()})
        raise ValueError(f"no experiment fits {pattern!r}: there are {', '.join(folders)}")
    return found


def register(arguments: Sequence[str] | None = None) -> None:
    """Make ``model=NAME``, ``method=NAME`` and ``experiment=NAME`` known to Hydra, before it composes.

    Args:
        arguments: of the command line; the experiments that they name are made known. None: all. Hydra copies all that
            it knows each time that it composes, and there are hundreds.
    """
    for group in ("model", "method"):
        for name, entry in config_store.choices(group).items():
            config_store.store(group, name, partial(dict, entry))
    config_store.store("experiment", "none", dict)  # so that there is a group, whose names Hydra then looks for
    text = None if arguments is None else " ".join(arguments)
    for name in names():
        if text is None or name in text:
            group, _, row = name.partition("/")
            config_store.store(f"experiment/{group}", row, partial(_node, name))


def _node(name: str) -> dict[str, Any]:
    if name in experiments():
        return experiments()[name].node()
    recipe = dict(config_store.entries("trainings")[name])
    row = experiments().get(recipe.pop("row", ""))
    if row is None:
        return config_store.experiment(name, recipe)
    return config_store.experiment(row.name, {"title": row.title, **row.overrides, **recipe})


def parsed(override: str) -> tuple[str, Any]:
    """Key and value of an override, as Hydra reads it. Raises ``ValueError`` where it cannot."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        found = OverridesParser.create().parse_override(override)
    except HydraException as error:
        raise ValueError(f"{override!r} cannot be read: write KEY=VALUE") from error
    return found.key_or_group, found.value()


def of_groups(groups: tuple[str, ...]) -> DictConfig:
    """The config of ``ttf eval`` with choices of groups, as "model=vit_mini"; composed once, the caller's to change."""
    config: DictConfig = pickle.loads(_packed(groups))  # our own bytes; a sixth of the time of a copy
    return config


@cache
def _packed(groups: tuple[str, ...]) -> bytes:
    from hydra.core.global_hydra import GlobalHydra

    if GlobalHydra.instance().is_initialized():
        return pickle.dumps(compose("eval", list(groups)))
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return pickle.dumps(compose("eval", list(groups)))


def composed(run: Planned, further: Sequence[str] = ()) -> DictConfig:
    """The config of ``scripts/eval.py`` with ``run.arguments``, an order of magnitude faster than Hydra composes it.

    Args:
        run: what is composed.
        further: more overrides, such as places of data.

    Raises:
        ValueError: there is no such experiment; Hydra's and OmegaConf's own errors for overrides that do not exist.
    """
    check_once(run.overrides)
    row = experiments().get(run.experiment)
    if row is None:
        raise ValueError(f"there is no experiment {run.experiment!r}")
    values = {"name": row.name, "title": row.title, **row.overrides}
    values |= dict(map(parsed, (*run.overrides, *further)))
    groups = tuple(f"{key}={value}" for key, value in sorted(values.items()) if key in GROUPS)
    config = of_groups(groups)
    for key, value in values.items():
        if key not in GROUPS:
            try:
                OmegaConf.update(config, key, value)
            except (ConfigKeyError, ConfigAttributeError) as error:
                raise ValueError(f"{key} is no setting of ttf eval") from error
    return config
