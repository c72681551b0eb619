"""Time of a forward pass by kind of work, beside its floor: ``python scripts/floor.py model=deit_s ratio=0.7``."""

from __future__ import annotations

from pathlib import Path

import hydra
import torch
from omegaconf import DictConfig

import ttf
from ttf import api, cli
from ttf.bench import roofline as floor
from ttf.bench.entries import sized
from ttf.building import build
from ttf.data.files import atomic_write
from ttf.data.transforms import preprocessing
from ttf.measure.provenance import provenance
from ttf.report.tables import markdown, show
from ttf.results import speed
from ttf.tasks.options import pick_device, pick_dtype, reduction


def _rows(cfg: DictConfig, device: torch.device) -> list[speed.Row]:
    torch.manual_seed(cfg.seed)
    options, dtype = reduction(cfg), pick_dtype(cfg.dtype)
    if options is None:
        raise ValueError("method=none compresses nothing: choose a method")
    model = build(sized(cfg.model, cfg.pixels).network).eval().to(device, dtype)
    ours = ttf.apply(api.twin(model), **options)
    images = torch.randn(cfg.batch, *preprocessing(model).input_size).to(device, dtype)
    known, place = floor.rates(device, dtype), provenance(device)
    common = {"model": cfg.model.name, "batch": cfg.batch, "dtype": cfg.dtype, "device": place["device"]}
    rates = {"gmacs_per_s": round(known.gmacs_per_s, 1), "gb_per_s": round(known.gb_per_s, 1)}
    rows = []
    for way, parts in zip(
        ("uncompressed", "compressed"), floor.parts((model, ours), images, known, cfg.rounds), strict=True
    ):
        for kind, part in parts.items():
            rows.append({**common, "way": way, "kind": kind, **vars(part), **rates})
    return rows


def _cells(rows: list[speed.Row]) -> list[list[str]]:
    """The table, an image's share each, with a sum for each way."""
    numbers = ("gmacs", "gb", "floor_ms", "measured_ms")
    cells = [["way", "kind", "GMACs", "GB", "floor ms", "measured ms", "share"]]
    for way in dict.fromkeys(row["way"] for row in rows):
        own = [row for row in rows if row["way"] == way]
        whole = [sum(row[name] for row in own) for name in numbers]
        for name, values in [*((row["kind"], [row[n] for n in numbers]) for row in own), ("all", whole)]:
            shown = [f"{value:.3f}" for value in values]
            cells.append([way, name, *shown, f"{100 * values[-1] / whole[-1]:.1f} %"])
    return cells


@hydra.main(version_base="1.3", config_path="../configs", config_name="floor")
def main(cfg: DictConfig) -> None:
    device = pick_device(cfg.device)
    rows, path = _rows(cfg, device), Path(cfg.csv)
    first = rows[0]
    title = (
        f"{first['model']}, batch {first['batch']}, {first['dtype']}, an image's share; {first['device']}: "
        f"{first['gmacs_per_s']} GMAC/s, {first['gb_per_s']} GB/s"
    )
    speed.write(rows, path)
    atomic_write(path.with_suffix(".md"), lambda t: t.write_text(f"**{title}**\n\n{markdown(_cells(rows))}"))
    show(_cells(rows), title)
    print(path)


if __name__ == "__main__":
    cli.run(main)
