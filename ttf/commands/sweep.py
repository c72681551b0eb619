"""The rows of a table or figure: list them, measure what is missing, draw: ``ttf sweep table=table6``."""

from __future__ import annotations

from collections.abc import Sequence

import hydra
from omegaconf import DictConfig

from ttf import cli, experiments
from ttf.config_store import CONFIGS
from ttf.experiments import Planned, Table
from ttf.settings import check
from ttf.unread import check_once, key_of

FOR_EVERY_ROW = ("paths", "device", "device_map", "offload", "batch_size", "workers", "throughput", "task.window_batch")
# what rows may have otherwise than their table until they are published: tables show what they have
UNPUBLISHED = ("limit", "skip", "seed", "dtype", "on_bad_image", "task.dataset", "task.data")


def check_overrides(runs: Sequence[Planned], overrides: Sequence[str], publish: bool) -> None:
    """Raise ``ValueError`` where overrides for every run are none of ``ttf eval``, out of range, or make other rows."""
    check_once(overrides)
    if runs and overrides:
        check(experiments.composed(runs[0], overrides))
    known = FOR_EVERY_ROW if publish else FOR_EVERY_ROW + UNPUBLISHED
    others = [one for one in overrides if not f"{key_of(one)}.".startswith(tuple(f"{key}." for key in known))]
    if others:
        which = "rows that are to be published" if publish else "the rows of a table"
        raise ValueError(f"overrides take {', '.join(known)}: {others[0]} would make others of {which}")


def check_drawn(table: Table, scale: str, models: Sequence[str] | None) -> None:
    """Raise ``ValueError`` for models to draw that the table does not have at a scale."""
    if models is not None:
        own = table.models(scale) or {experiments.composed(run).model.name for run in table.planned(scale)}
        experiments.check_models(table, models, own)


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="sweep")
@cli.job
def main(cfg: DictConfig) -> None:
    table = experiments.load(cfg.table)
    check_overrides(table.planned(cfg.scale), cfg.overrides, cfg.publish)  # before torch is imported
    check_drawn(table, cfg.scale, cfg.models)
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
