"""Count multiply-accumulates without weights or data: ``ttf count experiment=fig4b/evit ratio=0.9``."""

from __future__ import annotations

from pathlib import Path

import hydra
from omegaconf import DictConfig

from ttf import cli
from ttf.config_store import CONFIGS

SAME = ("experiment", "model", "ratio", "blocks")


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="eval")
@cli.job
def main(cfg: DictConfig) -> None:
    if not cfg.name:
        raise ValueError("give the experiment to count: experiment=fig4b/evit")
    from ttf.bench.counting import counted
    from ttf.results.costs import read, write

    row = counted(cfg)
    path = Path(cfg.paths.results) / "speed" / f"{cfg.name.partition('/')[0]}.csv"
    others = [old for old in read(path) if any(old[key] != str(row[key]) for key in SAME)]
    write([*others, row], path)
    print(f"{row['title']}, {row['model']}, ratio {row['ratio'] or 1}: {row['gmacs']:.3f} GMACs, in {path}")
