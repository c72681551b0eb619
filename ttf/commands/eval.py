"""Measure a model, compressed or not, and write a row: ``ttf eval task=cls model=vit_ti_augreg``."""

from __future__ import annotations

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from ttf import cli
from ttf.config_store import CONFIGS
from ttf.errors import MissingError


def check_out(out: str | None) -> None:
    """Raise ``ValueError`` where ``out`` would replace something else than a row."""
    from ttf.data.files import check_replaceable
    from ttf.results.store import is_row

    if out:
        check_replaceable(Path(out), is_row, "a row of results")


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="eval")
@cli.job
def main(cfg: DictConfig) -> None:
    from ttf.report.terminal import print_row
    from ttf.report.wandb import log_row
    from ttf.results.store import Store, read_json, write_row
    from ttf.tasks.run import execute

    check_out(cfg.out)
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
    if cfg.out:
        check_out(cfg.out)  # an evaluation takes a while
        stored = Store(cfg.paths.runs).path(row["id"])
        write_row(Path(cfg.out), read_json(stored) if stored.is_file() else row)
    log_row(row, cfg.logger)
