"""Time of a forward pass by kind of work, beside its roofline: ``ttf roofline model=deit_s``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from omegaconf import DictConfig

import ttf
from ttf import cli
from ttf.config_store import CONFIGS

if TYPE_CHECKING:  # torch comes after the settings are checked
    import torch
    from torch import nn

    from ttf.results import costs


def _models(cfg: DictConfig) -> tuple[nn.Module, nn.Module]:
    """The uncompressed and the compressed model, weights at random, on the CPU."""
    from ttf.bench.entries import sized
    from ttf.bench.fitting import fit, random_model
    from ttf.tasks.options import reduction

    model, images = random_model(sized(cfg.model, cfg.pixels).network, cfg.seed)
    options = reduction(cfg)
    if options is None:
        raise ValueError("method=none compresses nothing: choose a method")
    if "calibrate" in options:
        options = fit(model, images, options)
    return model, ttf.apply(ttf.twin(model), **options)


def _rows(cfg: DictConfig, device: torch.device) -> list[costs.Row]:
    import torch

    from ttf.bench import roofline
    from ttf.data.transforms import preprocessing
    from ttf.measure.provenance import provenance
    from ttf.tasks.options import pick_dtype

    dtype = pick_dtype(cfg.dtype)
    models = [model.to(device, dtype) for model in _models(cfg)]
    images = torch.randn(cfg.batch, *preprocessing(models[0]).input_size).to(device, dtype)
    known, place = roofline.rates(device, dtype), provenance(device)
    common = {"model": cfg.model.name, "batch": cfg.batch, "dtype": cfg.dtype, "device": place["device"]}
    rates = {"gmacs_per_s": round(known.gmacs_per_s, 1), "gb_per_s": round(known.gb_per_s, 1)}
    found = zip(("uncompressed", "compressed"), roofline.parts(models, images, known, cfg.rounds), strict=True)
    return [
        {**common, "way": way, "kind": kind, **vars(part), **rates}
        for way, parts in found
        for kind, part in parts.items()
    ]


def _cells(rows: list[costs.Row]) -> list[list[str]]:
    """The table, an image's share each, with a sum for each way."""
    numbers = ("gmacs", "gb", "roofline_ms", "measured_ms")
    cells = [["way", "kind", "GMACs", "GB", "roofline ms", "measured ms", "share"]]
    for way in dict.fromkeys(row["way"] for row in rows):
        own = [row for row in rows if row["way"] == way]
        whole = [sum(row[name] for row in own) for name in numbers]
        for name, values in [*((row["kind"], [row[n] for n in numbers]) for row in own), ("all", whole)]:
            shown = [f"{value:.3f}" for value in values]
            cells.append([way, name, *shown, f"{100 * values[-1] / whole[-1]:.1f} %"])
    return cells


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="roofline")
@cli.job
def main(cfg: DictConfig) -> None:
    from ttf.report.costs import published
    from ttf.results import costs
    from ttf.tasks.options import pick_device

    device, path = pick_device(cfg.device), Path(cfg.csv)
    costs.check_file(path)
    rows = _rows(cfg, device)
    first = rows[0]
    title = (
        f"{first['model']}, batch {first['batch']}, {first['dtype']}, an image's share; {first['device']}: "
        f"{first['gmacs_per_s']} GMAC/s, {first['gb_per_s']} GB/s"
    )
    published(rows, _cells(rows), title, path)
