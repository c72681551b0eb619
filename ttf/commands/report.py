"""Write the numbers of README.md and docs anew from rows, between their markers: ``ttf report``."""

from __future__ import annotations

from pathlib import Path

import hydra
from omegaconf import DictConfig

from ttf import cli
from ttf.config_store import CONFIGS


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="report")
@cli.job
def main(cfg: DictConfig) -> None:
    from ttf.report.documents import rewrite
    from ttf.report.numbers import Numbers
    from ttf.results.measured import read

    rows, results = read(cfg.paths.rows, Path(cfg.paths.rows) / "no_drafts"), Path(cfg.paths.results)
    numbers = Numbers(rows, results / "speed", results / "training")
    changed = rewrite(Path(cfg.paths.root), numbers, cfg.compare)
    words = "differs from rows" if cfg.compare else "written"
    print("\n".join(f"{name}: {words}" for name in changed) or "every number is that of its row")
    if cfg.compare and changed:
        raise SystemExit(1)
