"""Measure a model, compressed or not, and write a row: ``python scripts/eval.py task=cls model=vit_ti_augreg``."""

from __future__ import annotations

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from ttf import cli
from ttf.errors import MissingError


@hydra.main(version_base="1.3", config_path="../configs", config_name="eval")
@cli.job
def main(cfg: DictConfig) -> None:
    from ttf.report.terminal import print_row
    from ttf.report.wandb import log_row
    from ttf.results.store import write_json
    from ttf.tasks.run import execute

    try:
        row = execute(cfg)
    except MissingError as error:
        if cfg.on_missing != "skip":
            raise
        print(f"skipped {cfg.name or cfg.model.name}: {error}", file=sys.stderr)
        return
    if row is None:  # another process has it
        return
    print_row(row)
    log_row(row, cfg.logger)
    if cfg.out:
        write_json(Path(cfg.out), row)


if __name__ == "__main__":
    cli.run(main)
