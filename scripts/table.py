"""Render a table from rows alone: ``python scripts/table.py table=readings`` writes results/tables/readings.md."""

from __future__ import annotations

from pathlib import Path

import hydra
from hydra import compose
from omegaconf import DictConfig

from ttf import cli
from ttf.data.files import atomic_write
from ttf.report import tables, zoo
from ttf.report.lines import Sources, accuracy_of, lines_by_heading
from ttf.results.measured import printed_lines
from ttf.results.speed import read
from ttf.tasks.availability import ADVICE, lack


def of_experiments(cfg: DictConfig) -> tuple[list[tuple[str, tables.Cells]], str]:
    """Headings with cells, and the legend, of a table of one's own experiments."""
    groups = lines_by_heading(cfg.table, cfg.models, Sources(cfg.paths.runs, cfg.quoted, cli.EXPERIMENTS))
    quoted = any(line.paper_top1 for _, lines in groups for line in lines)
    legend = f"{tables.LEGEND}; {tables.PAPER_LEGEND}" if quoted else tables.LEGEND
    return [(heading, tables.table(lines)) for heading, lines in groups], f"{legend}."


def of_paper(cfg: DictConfig, printed: list[dict[str, str]]) -> tuple[list[tuple[str, tables.Cells]], str]:
    """The same for a table that the paper prints line by line."""
    places = [f"paths.{name}={cfg.paths[name]}" for name in ("imagenet", "weights", "downloads", "results")]

    def why(experiment: str) -> str:
        return lack(compose("eval", [f"experiment={experiment}", *places]))

    costs, rows = read(Path(cfg.paths.results) / "speed" / f"{cfg.table}.csv"), accuracy_of(cfg.paths.runs, cfg.table)
    lines = zoo.lines_of(printed, costs, rows, why, cfg.table)
    advice = [f"{word}: {ADVICE[word]}" for word in dict.fromkeys(line.lack for line in lines if line.lack)]
    return [(f"Table {cfg.table[-1]}", zoo.table(lines))], "; ".join([zoo.LEGEND.rstrip("."), *advice]) + "."


@hydra.main(version_base="1.3", config_path="../configs", config_name="table")
def main(cfg: DictConfig) -> None:
    printed = printed_lines(cfg.quoted, cfg.table)
    groups, legend = of_paper(cfg, printed) if printed else of_experiments(cfg)
    for heading, cells in groups:
        tables.show(cells, heading)
    parts = [f"**{heading}**\n\n{tables.markdown(cells)}" for heading, cells in groups]
    path = Path(cfg.paths.results) / "tables" / f"{cfg.table}{cfg.suffix}.md"
    atomic_write(path, lambda temporary: temporary.write_text("\n".join([*parts, f"{legend}\n"])))
    print(path)


if __name__ == "__main__":
    cli.run(main)
