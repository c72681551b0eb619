"""Draw Fig. 2 or Fig. 4a from rows alone: ``python scripts/figure.py figure=fig4a``."""

from __future__ import annotations

from pathlib import Path

import hydra
from omegaconf import DictConfig

from ttf import cli
from ttf.data.files import atomic_write
from ttf.results.curves import accuracy_against_gmacs, error_against_accuracy
from ttf.results.lines import Sources, curves_of
from ttf.results.ranking import ranking
from ttf.results.tables import markdown

FIGURES = {"fig2": error_against_accuracy, "fig4a": accuracy_against_gmacs}


@hydra.main(version_base="1.3", config_path="../configs", config_name="figure")
def main(cfg: DictConfig) -> None:
    if cfg.figure not in FIGURES:
        raise ValueError(f"figure must be one of {', '.join(FIGURES)}, got {cfg.figure!r}")
    curves, base = curves_of(cfg.models, Sources(cfg.paths.runs, cfg.quoted, cli.EXPERIMENTS))
    path = Path(cfg.paths.results) / "figures" / f"{cfg.figure}{cfg.suffix}.png"
    FIGURES[cfg.figure](curves, base, path)
    print(path)
    if cfg.figure == "fig4a":
        table = Path(cfg.paths.results) / "tables" / f"fig4a{cfg.suffix}.md"
        atomic_write(table, lambda temporary: temporary.write_text(markdown(ranking(curves, base))))
        print(table)


if __name__ == "__main__":
    cli.run(main)
