"""Published rows are what their settings say, and what their experiments compose to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import ttf.cli  # noqa: F401  # registers experiments
from ttf import experiments
from ttf.experiments import Planned
from ttf.results.rows import plain
from ttf.results.store import SCHEMA, Row, signature
from ttf.tasks.identity import KNOWN_LATER, key_of, settings

ROWS = Path(__file__).parents[3] / "results" / "rows"
SAMPLE = 6


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return [json.loads(line) for file in sorted(ROWS.glob("*.jsonl")) for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def addresses(rows: list[Row]) -> list[tuple[Planned, Row]]:
    """What rows are called, with their configs."""
    named = [(one, row["config"]) for row in rows for one in row["experiments"]]
    return [(Planned(one["name"], one["title"], tuple(one["overrides"])), config) for one, config in named]


def test_ids_and_keys_follow_from_the_settings(rows: list[Row]) -> None:
    assert len(rows) > 300 and len({row["id"] for row in rows}) == len(rows)
    assert {row["schema"] for row in rows} == {row["config"]["schema"] for row in rows} == {SCHEMA}
    assert not [row["id"] for row in rows if signature(row["config"]) != row["id"]]
    assert not [row["id"] for row in rows if key_of(row["config"]) != row["key"]]
    assert all(row["experiments"] and row["config"]["data"] and row["config"]["weights"] for row in rows)


def test_every_address_composes_to_the_settings_of_its_row(addresses: list[tuple[Planned, Row]]) -> None:
    differing = {}
    for run, config in addresses:
        known = {name: value for name, value in config.items() if name not in KNOWN_LATER}
        found = plain(settings(experiments.composed(run)))
        if found != known:
            differing[run.address] = {k: (found.get(k), known.get(k)) for k in found if found.get(k) != known.get(k)}
    assert not differing
    assert len({run.address for run, _ in addresses}) == len(addresses)


def _plain(config: Any) -> Any:
    return OmegaConf.to_container(config, resolve=True)


def test_they_compose_as_hydra_does(addresses: list[tuple[Planned, Row]]) -> None:
    by_row = sorted(addresses, key=lambda pair: signature({"address": pair[0].address}))  # from all tables
    for run, _ in by_row[:SAMPLE]:
        with initialize_config_dir(str(experiments.CONFIGS), version_base="1.3"):
            experiments.register(run.arguments)
            expected = compose("eval", list(run.arguments))
        assert _plain(experiments.composed(run)) == _plain(expected), run.address
    assert len({run.experiment.split("/")[0] for run, _ in by_row[:SAMPLE]}) > 1


@pytest.mark.parametrize("table", experiments.names_of_tables())
def test_every_row_of_a_table_has_settings(table: str) -> None:
    if experiments.contents(table)["layout"] == experiments.BENCHMARKS:
        pytest.skip("lists benchmarks")
    found = experiments.load(table)
    runs = [run for scale in found.scales or ["tiny"] for run in found.planned(scale)]
    one_each = {run.experiment: run for run in reversed(runs)}  # at the first scale that has it
    assert all(settings(experiments.composed(run)) for run in one_each.values())
