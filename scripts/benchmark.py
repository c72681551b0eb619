"""Speed, compressed beside uncompressed: ``python scripts/benchmark.py model=deit_s ratio=0.7``."""

from __future__ import annotations

from pathlib import Path

import hydra
from omegaconf import DictConfig
from rich.progress import track

from ttf import cli
from ttf.data.files import atomic_write
from ttf.results import speed
from ttf.results.tables import markdown, show
from ttf.tasks.speed import measure


@hydra.main(version_base="1.3", config_path="../configs", config_name="benchmark")
def main(cfg: DictConfig) -> None:
    path = Path(cfg.csv) if cfg.csv else None
    rows = speed.read(path) if path and cfg.table else []
    done = frozenset() if cfg.force else frozenset(row.get("settings", "") for row in rows)
    for new in track(measure(cfg, done), "timing", transient=True):
        rows = speed.merged(rows, new)
        if path and new:
            speed.write(rows, path)  # after every model: an interrupted run loses one
    title = f"{rows[-1]['dtype']}, {rows[-1]['device']}, {rows[-1]['attention']}, weights at random"
    show(speed.cells(rows), title)
    if path:
        atomic_write(path.with_suffix(".md"), lambda t: t.write_text(f"**{title}**\n\n{markdown(speed.cells(rows))}"))
        print(path)


if __name__ == "__main__":
    cli.run(main)
