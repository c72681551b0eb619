"""Render a table from rows alone: ``python scripts/table.py table=readings`` writes results/tables/readings.md."""

from __future__ import annotations

from pathlib import Path

import hydra
from omegaconf import DictConfig

from ttf import cli
from ttf.data.files import atomic_write
from ttf.results import tables
from ttf.results.lines import Sources, lines_by_heading


@hydra.main(version_base="1.3", config_path="../configs", config_name="table")
def main(cfg: DictConfig) -> None:
    parts, quoted = [], False
    for heading, lines in lines_by_heading(cfg.table, cfg.models, Sources(cfg.paths.runs, cfg.quoted, cli.EXPERIMENTS)):
        cells = tables.table(lines)
        quoted |= any(line.paper_top1 for line in lines)
        tables.show(cells, heading)
        parts.append(f"**{heading}**\n\n{tables.markdown(cells)}")
    legend = f"{tables.LEGEND}; {tables.PAPER_LEGEND}" if quoted else tables.LEGEND
    path = Path(cfg.paths.results) / "tables" / f"{cfg.table}{cfg.suffix}.md"
    atomic_write(path, lambda temporary: temporary.write_text("\n".join([*parts, f"{legend}.\n"])))
    print(path)


if __name__ == "__main__":
    cli.run(main)
