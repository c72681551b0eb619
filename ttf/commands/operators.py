"""Attention with column sums and the transform beside what they replace: ``ttf operators threads=2``.

On a GPU other tiles beside those of the kernels: ``ttf operators device=cuda dtype=bfloat16``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from omegaconf import DictConfig

from ttf import cli
from ttf.config_store import CONFIGS

if TYPE_CHECKING:
    from ttf.results import costs


def cells(rows: list[costs.Row]) -> list[list[str]]:
    """A line a row, header first."""
    return [["operator", "shape", "way", "median ms"]] + [
        [row["operator"], row["shape"], row["way"], f"{row['median_ms']:.1f}"] for row in rows
    ]


def tried(cfg: DictConfig) -> None:
    """Other tiles on a GPU, to a file beside the other one."""
    from ttf.bench.tiles import is_half, tiles
    from ttf.measure.provenance import provenance
    from ttf.report.costs import published
    from ttf.tasks.options import pick_device, pick_dtype

    device, dtype = pick_device(cfg.device), pick_dtype(cfg.dtype)
    if not is_half(dtype):
        raise ValueError("tiles are found in half precision: set dtype=bfloat16 or float16")
    known, path = provenance(device, dtype), Path(cfg.csv).with_name("tiles.csv")
    place = {"device": known["device"], "torch": known["versions"]["torch"], "dtype": cfg.dtype}
    place |= {"git": known["git"]["sha"], "dirty": known["git"]["dirty"]}
    rows = [row | place for row in tiles(device, dtype, cfg.rounds)]
    shown = ("operator", "shape", "tiles", "launch", "ms", "why")
    table = [list(shown), *([str(row[name]) for name in shown] for row in rows)]
    published(rows, table, f"{known['device']}, {cfg.dtype}, median of {cfg.rounds} rounds", path)


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="operators")
@cli.job
def main(cfg: DictConfig) -> None:
    import torch  # after the settings are checked

    from ttf.bench.operators import operators
    from ttf.measure.provenance import provenance
    from ttf.report.costs import published
    from ttf.results import costs

    costs.check_file(Path(cfg.csv))
    if cfg.device.startswith("cuda"):
        return tried(cfg)
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    torch.manual_seed(cfg.seed)
    known, path = provenance(torch.device("cpu")), Path(cfg.csv)
    place = {"device": known["device"], "torch": known["versions"]["torch"], "rounds": cfg.rounds}
    place |= {"git": known["git"]["sha"], "dirty": known["git"]["dirty"]}
    rows = [row | place for row in operators(cfg.rounds)]
    shapes = "attention: images x heads x tokens; transform: images x tokens x channels, 0.7 of the tokens kept"
    title = f"{known['device']}, float32, median of {cfg.rounds} rounds. {shapes}"
    published(rows, cells(rows), title, path)
