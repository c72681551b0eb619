"""Render a table from rows alone: ``python scripts/table.py table=readings`` writes results/tables/readings.md."""

from __future__ import annotations

from pathlib import Path

import hydra
from omegaconf import DictConfig
from rich.console import Console

from ttf import cli
from ttf.data.files import atomic_write
from ttf.results import tables
from ttf.results.store import Store


@hydra.main(version_base="1.3", config_path="../configs", config_name="table")
def main(cfg: DictConfig) -> None:
    rows = [row for row in Store(cfg.paths.runs).rows() if (row["experiment"] or "").startswith(f"{cfg.table}/")]
    if not rows:
        raise ValueError(f"no rows of {cfg.table} in {cfg.paths.runs}: run make {cfg.table} first")
    parts = []
    for title, cells in tables.by_model(rows):
        Console().print(tables.terminal(cells, title))
        parts.append(f"**{title}**\n\n{tables.markdown(cells)}")
    path = Path(cfg.paths.results) / "tables" / f"{cfg.table}.md"
    atomic_write(path, lambda temporary: temporary.write_text("\n".join(parts)))
    print(path)


if __name__ == "__main__":
    cli.run(main)
