"""Draw Fig. 2, 4a, 4b, 4c or the figures of speed from rows alone: ``python scripts/figure.py figure=fig4a``."""

from __future__ import annotations

from pathlib import Path

import hydra
from omegaconf import DictConfig

from ttf import cli
from ttf.data.files import atomic_write
from ttf.report import dense, speed_figures
from ttf.report.curves import accuracy_against_gmacs, error_against_accuracy
from ttf.report.lines import Sources, curves_of
from ttf.report.ranking import ranking
from ttf.report.tables import markdown, show
from ttf.results.speed import read

FIGURES = {"fig2": error_against_accuracy, "fig4a": accuracy_against_gmacs}
SPEED = {"speed": speed_figures.speed_against_macs, "speed_tokens": speed_figures.time_against_tokens}


def _write(text: str, path: Path) -> None:
    atomic_write(path, lambda temporary: temporary.write_text(text))
    print(path)


def of_classifiers(cfg: DictConfig, sources: Sources, picture: Path, table: Path) -> None:
    """Fig. 2 and 4a; beside the latter, who is first at which budget."""
    curves, base = curves_of(cfg.models, sources)
    FIGURES[cfg.figure](curves, base, picture)
    print(picture)
    if cfg.figure == "fig4a":
        _write(markdown(ranking(curves, base)), table)


def of_segmentation(cfg: DictConfig, sources: Sources, picture: Path, table: Path) -> None:
    """Fig. 4b and 4c, each with its table."""
    counted = read(Path(cfg.paths.results) / "speed" / f"{cfg.figure}.csv")
    entries = dense.gather(cfg.figure, cfg.models, sources, counted)
    parts = []
    for entry in entries:
        cells = dense.table(entry)
        show(cells, entry.model)
        parts.append(f"**{entry.model}**\n\n{markdown(cells)}")
    dense.figure(entries, picture)
    print(picture)
    _write("\n".join([*parts, f"{dense.LEGEND}.\n"]), table)


def of_speed(cfg: DictConfig, picture: Path) -> None:
    """Speed-up over multiply-accumulates, or time over tokens; ``make speed`` has the tables."""
    rows = speed_figures.gather(cfg.figure, cfg.models, Path(cfg.paths.results) / "speed")
    SPEED[cfg.figure](rows, picture)
    print(picture)


@hydra.main(version_base="1.3", config_path="../configs", config_name="figure")
def main(cfg: DictConfig) -> None:
    known = [*FIGURES, *dense.FIGURES, *SPEED]
    if cfg.figure not in known:
        raise ValueError(f"figure must be one of {', '.join(known)}, got {cfg.figure!r}")
    name, results = f"{cfg.figure}{cfg.suffix}", Path(cfg.paths.results)
    if cfg.figure in SPEED:
        return of_speed(cfg, results / "figures" / f"{name}.png")
    draw = of_segmentation if cfg.figure in dense.FIGURES else of_classifiers
    sources = Sources(cfg.paths.runs, cfg.quoted, cli.EXPERIMENTS)
    draw(cfg, sources, results / "figures" / f"{name}.png", results / "tables" / f"{name}.md")


if __name__ == "__main__":
    cli.run(main)
