"""The main job on the embedded model, offline, with a table and a figure: ``ttf demo``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra import compose
from omegaconf import DictConfig, open_dict
from rich.console import Console

from ttf import cli
from ttf.config_store import CONFIGS

if TYPE_CHECKING:
    from ttf.results.store import Row

LEGEND = (
    "drop: points of top-1 below the uncompressed model; agree: images with its class; KL: KL(uncompressed || "
    "compressed), nats; efficiency: speed-up / (MACs uncompressed / MACs compressed)"
)
METHODS = {"uncompressed": "none", "literal equations": "paper", "default": "token_transform"}
SMALL = (
    "The embedded model takes milliseconds, most of them outside of what fewer tokens save: little or no speed-up is "
    "expected here. ttf benchmark and make speed time larger models."
)


def _row(cfg: DictConfig, title: str, method: DictConfig) -> Row:
    from ttf.tasks.run import execute

    with open_dict(cfg):
        cfg.method, cfg.title = method, title
    row = execute(cfg)
    assert row is not None, "one process"
    return row


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="demo")
@cli.job
def main(cfg: DictConfig) -> None:
    from ttf.data.files import atomic_write, check_replaceable
    from ttf.report import tables  # torch comes after the settings are checked
    from ttf.results.measured import Measured
    from ttf.results.store import Store
    from ttf.tasks.options import how_far
    from ttf.tasks.run import Run

    if cfg.limit is not None and cfg.figure_images > cfg.limit:
        raise ValueError(
            f"figure_images={cfg.figure_images} and limit={cfg.limit}: the figure is of images of the table"
        )
    folder = Path(cfg.demo_folder)
    table = folder / "table.md"
    check_replaceable(table, lambda path: path.read_bytes().startswith(b"|"), "a table")
    methods = {name: compose("eval", [f"method={choice}"]).method for name, choice in METHODS.items()}
    store = Store(cfg.paths.runs)
    measured = [_row(cfg.copy(), title, method) for title, method in methods.items()]
    rows = [Measured(row, partial(store.images, row["id"])) for row in measured]
    lines = [tables.Line(name, row, rows[0]) for name, row in zip(methods, rows, strict=True)]
    cells = tables.table(lines, without=("class_token_error",))
    Run(cfg).picture(folder / "tokens.png", range(cfg.figure_images))
    atomic_write(table, lambda temporary: temporary.write_text(tables.markdown(cells)))
    base = rows[0].row
    title = f"{cfg.model.name}, {how_far(cfg)}, {base['images']} test images, {base['device']}"
    tables.show(cells, title)
    Console().print(f"{LEGEND}\n{SMALL}")
    print(f"figure: {folder / 'tokens.png'}\ntable:  {table}")
