"""Speed, compressed beside uncompressed: ``python scripts/benchmark.py model=deit_s ratio=0.7``."""

from __future__ import annotations

from pathlib import Path

import hydra
from omegaconf import DictConfig

from ttf import cli
from ttf.data.files import atomic_write
from ttf.results.tables import markdown, show
from ttf.tasks import speed


@hydra.main(version_base="1.3", config_path="../configs", config_name="benchmark")
def main(cfg: DictConfig) -> None:
    rows = list(speed.measure(cfg))
    cells, title = speed.cells(rows), f"{cfg.model.name}, {cfg.dtype}, {rows[0]['device']}, weights at random"
    show(cells, title)
    if cfg.csv:
        path = Path(cfg.csv)
        speed.write(rows, path)
        atomic_write(path.with_suffix(".md"), lambda t: t.write_text(f"**{title}**\n\n{markdown(cells)}"))
        print(path)


if __name__ == "__main__":
    cli.run(main)
