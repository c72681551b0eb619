"""The rows of a table or figure: list them, measure what is missing, draw: ``python scripts/sweep.py table=table6``."""

from __future__ import annotations

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from ttf import cli, experiments
from ttf.experiments import Planned
from ttf.report import Options, render
from ttf.results.measured import read
from ttf.sweep import Sweep, listing, summary
from ttf.tasks.availability import ADVICE

PLACES = (
    "imagenet",
    "ade20k",
    "cityscapes",
    "camvid",
    "weights",
    "downloads",
    "results",
    "rows",
    "runs",
    "cache",
    "logs",
)


def draw(cfg: DictConfig, sweep: Sweep) -> None:
    """Tables and figures: in results for a sweep that publishes, else in outputs."""
    suffix = "" if cfg.scale == "tiny" or not sweep.table.scales else f"_{cfg.scale}"
    models = cfg.models or sweep.table.models(cfg.scale)
    out = Path(cfg.paths.results if cfg.publish else cfg.paths.logs)

    def missing(experiment: str) -> str:
        return sweep.machine.missing(experiments.composed(Planned(experiment, "", ()), sweep.further))

    options = Options(Path(cfg.paths.results), models, suffix, missing, ADVICE, out=out)
    for path in render(sweep.table, read(cfg.paths.rows, cfg.paths.runs), options):
        print(path)


@hydra.main(version_base="1.3", config_path="../configs", config_name="sweep")
def main(cfg: DictConfig) -> None:
    places = [f"paths.{name}={cfg.paths[name]}" for name in PLACES if cfg.paths[name] is not None]
    sweep = Sweep(experiments.load(cfg.table), cfg.scale, cfg.paths, [*places, *cfg.overrides], cfg.force)
    states = sweep.states()
    if cfg.list:
        print(listing(states))
        return
    if sweep.open(states):
        sweep.run(states)
    changed = sweep.publish(states) if cfg.publish else []
    draw(cfg, sweep)
    print(summary(states) + (f"; published in {', '.join(changed)}" if changed else ""))
    if any(state.word == "failed" for state in states):
        raise SystemExit(1)


if __name__ == "__main__":
    sys.argv[1:] = ["list=true" if argument == "--list" else argument for argument in sys.argv[1:]]
    cli.run(main)
