"""The rows of a table or figure: list them, measure what is missing, draw: ``ttf sweep table=table6``."""

from __future__ import annotations

from collections.abc import Sequence

import hydra
from omegaconf import DictConfig

from ttf import cli, experiments
from ttf.config_store import CONFIGS
from ttf.experiments import Planned
from ttf.settings import check


def check_overrides(runs: Sequence[Planned], overrides: Sequence[str]) -> None:
    """Raise ``ValueError`` where overrides for every run are none of ``ttf eval``, or out of their range."""
    if runs and overrides:
        check(experiments.composed(runs[0], overrides))


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="sweep")
@cli.job
def main(cfg: DictConfig) -> None:
    table = experiments.load(cfg.table)
    check_overrides(table.planned(cfg.scale), cfg.overrides)  # before torch is imported, and so is a wrong scale
    from ttf.sweep import Drawing, Sweep, draw, listing, summary

    places = [f"paths.{name}={place}" for name, place in cfg.paths.items() if place is not None]
    sweep = Sweep(table, cfg.scale, cfg.paths, [*places, *cfg.overrides], cfg.force)
    states = sweep.states()
    if cfg.list:
        print(listing(states))
        return
    if sweep.open(states):
        sweep.run(states)
    failed = any(state.word == "failed" for state in states)
    if failed and not any(state.row for state in states):  # nothing to draw
        print(summary(states))
        raise SystemExit(1)
    changed = sweep.publish(states) if cfg.publish else []
    for path in draw(sweep, Drawing(cfg.models, cfg.paths.results if cfg.publish else cfg.paths.logs, cfg.publish)):
        print(path)
    print(summary(states) + (f"; published in {', '.join(changed)}" if changed else ""))
    if failed:
        raise SystemExit(1)
