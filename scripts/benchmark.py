"""Speed, compressed beside uncompressed: ``python scripts/benchmark.py model=deit_s ratio=0.7``."""

from __future__ import annotations

from pathlib import Path

import hydra
from omegaconf import DictConfig
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from ttf import cli
from ttf.bench.timing import Timing, timings
from ttf.data.files import atomic_write
from ttf.report.tables import markdown, show
from ttf.results import speed

COLUMNS = (SpinnerColumn(), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))


def measured(todo: list[Timing], rows: list[speed.Row], path: Path | None) -> list[speed.Row]:
    """The rows with those of the runs to do, written after every run: what is interrupted loses one."""
    with Progress(*COLUMNS) as progress:
        bar = progress.add_task("", total=len(todo))
        for timing in todo:
            progress.update(bar, description=timing.label)
            rows = speed.merged(rows, timing.rows())
            if path:
                speed.write(rows, path)
            progress.console.print(f"timed: {timing.label}")
            progress.advance(bar)
    return rows


@hydra.main(version_base="1.3", config_path="../configs", config_name="benchmark")
def main(cfg: DictConfig) -> None:
    path = Path(cfg.csv) if cfg.csv else None
    rows = speed.read(path) if path else []
    wanted = list(timings(cfg))
    done = frozenset() if cfg.force else frozenset(row.get("settings", "") for row in rows)
    todo = [timing for timing in wanted if timing.settings not in done]
    if len(todo) < len(wanted):
        print(f"{len(wanted) - len(todo)} of {len(wanted)} runs are in {path} (force=true times them again)")
    rows = measured(todo, rows, path)
    title, cells = speed.heading(rows), speed.cells(rows)
    show(cells, title)
    if path:
        atomic_write(path.with_suffix(".md"), lambda t: t.write_text(f"**{title}**\n\n{markdown(cells)}"))
        print(path)


if __name__ == "__main__":
    cli.run(main)
