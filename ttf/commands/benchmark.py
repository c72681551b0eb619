"""Speed, compressed beside uncompressed: ``ttf benchmark model=deit_s ratio=0.7``, or ``table=speed``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from ttf import cli
from ttf.config_store import CONFIGS

if TYPE_CHECKING:  # torch comes after the settings are checked
    from ttf.bench.timing import Timing
    from ttf.results.costs import Row

COLUMNS = (SpinnerColumn(), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))


def missing(cfg: DictConfig, wanted: list[Timing], rows: list[Row]) -> list[Timing]:
    """The runs that are not among the rows."""
    done = frozenset() if cfg.force else frozenset(row.get("settings", "") for row in rows)
    todo = [timing for timing in wanted if timing.settings not in done]
    if len(todo) < len(wanted):
        print(f"{len(wanted) - len(todo)} of {len(wanted)} runs are in {cfg.csv} (force=true times them again)")
    return todo


def one_by_one(todo: list[Timing], progress: Progress) -> Iterator[tuple[Timing, list[Row]]]:
    """Runs and their rows, in this process."""
    bar = progress.add_task("", total=len(todo))
    for timing in todo:
        progress.update(bar, description=timing.label)
        yield timing, timing.rows()
        progress.advance(bar)


def side_by_side(cfg: DictConfig, todo: list[Timing], progress: Progress) -> Iterator[tuple[Timing, list[Row]]]:
    """Runs and their rows, from processes that compile side by side."""
    from ttf.bench import parallel

    given = HydraConfig.get().overrides.task
    kept = [one for one in given if not one.startswith(("benchmark=", "jobs=", "minutes=", "force="))]

    def command(timing: Timing) -> list[str]:
        name = timing.cfg.benchmark
        listed = [f"benchmark={name}"] if name else []  # so that it composes no other
        return [sys.executable, "-m", "ttf", "benchmark", *kept, *listed, f"worker={timing.settings}"]

    yield from parallel.measured(todo, command, cfg.jobs, 60 * cfg.minutes, progress.console.print)


def measured(cfg: DictConfig, todo: list[Timing], rows: list[Row], path: Path | None) -> list[Row]:
    """The rows with those of the runs to do, written after every run: what is interrupted loses one."""
    from ttf.results import costs

    with Progress(*COLUMNS) as progress:
        found = side_by_side(cfg, todo, progress) if cfg.jobs else one_by_one(todo, progress)
        for timing, new in found:
            rows = costs.merged(rows, new)
            if path:
                costs.write(rows, path)
            progress.console.print(f"timed: {timing.label}: {said(new)}")
    return rows


def said(rows: list[Row]) -> str:
    """The speed-ups of a run in one line."""
    return ", ".join(f"{row['method']} {row['speed_up']:.2f}x of {row['mac_ratio']:.2f}x" for row in rows[1:])


def run(cfg: DictConfig, wanted: list[Timing]) -> None:
    """Time what is missing of one benchmark, write and show its table."""
    from ttf.report import speed
    from ttf.report.costs import published
    from ttf.results import costs

    path = Path(cfg.csv) if cfg.csv else None
    if path:
        costs.check_file(path)
    rows = costs.read(path, costs.OF_BENCHMARKS) if path else []
    rows = measured(cfg, missing(cfg, wanted, rows), rows, path)
    if rows:
        published(rows, speed.cells(rows), speed.heading(rows), path)


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="benchmark")
@cli.job
def main(cfg: DictConfig) -> None:
    from ttf.bench import parallel
    from ttf.bench.listed import configs
    from ttf.bench.timing import timings

    chosen = [(one, list(timings(one))) for one in configs(cfg, HydraConfig.get().overrides.task)]
    if cfg.worker:
        wanted_runs = [t for _, wanted in chosen for t in wanted if t.settings == cfg.worker]
        if not wanted_runs:
            raise ValueError("worker is for processes that ttf benchmark jobs=N starts: leave it out")
        parallel.serve(wanted_runs[0])
        return
    if cfg.jobs:  # all of them at once: one file, and one limit of time
        chosen = [(chosen[0][0], [timing for _, wanted in chosen for timing in wanted])]
    for one, wanted in chosen:
        run(one, wanted)
