"""Speed of several methods in one interleaved run, beside what their multiply-accumulates promise."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch
from hydra import compose
from omegaconf import DictConfig
from torch import nn

import ttf
from ttf.building import build
from ttf.data.files import atomic_write
from ttf.data.transforms import preprocessing
from ttf.measure.provenance import provenance
from ttf.stack import shallow_twin
from ttf.tasks.options import pick_device, pick_dtype, reduction

BASE = "uncompressed"
Row = dict[str, Any]


def contestants(cfg: DictConfig) -> dict[str, dict[str, Any]]:
    """Title to arguments of ``ttf.apply``: the configured method, or the experiments that ``cfg.experiments`` names.

    Raises:
        ValueError: nothing is compressed (method=none).
    """
    if not cfg.experiments:
        options = reduction(cfg)
        if options is None:
            raise ValueError("method=none compresses nothing: choose a method")
        return {f"{cfg.method.get('method') or 'method'}, ratio {cfg.ratio}": options}
    found: dict[str, dict[str, Any]] = {}
    for words in cfg.experiments:
        name, *overrides = words.split()
        chosen = compose("eval", [f"model={cfg.model.name}", f"experiment={name}", *overrides])
        options = reduction(chosen)
        if options is None or "calibrate" in options:
            raise ValueError(f"experiment {name} cannot be timed: it compresses nothing, or needs images to calibrate")
        found[" ".join([chosen.title or name, *overrides])] = options
    return found


def _row(cfg: DictConfig, title: str, batch: int, macs: dict[str, float], speed: ttf.measure.Speed) -> Row:
    possible = macs[BASE] / macs[title]
    return {
        "model": cfg.model.name, "method": title, "batch": batch, "dtype": cfg.dtype, "gmacs": round(macs[title], 4),
        "images_per_s": round(speed.images_per_s, 1), "median_ms": round(1e3 * speed.median_s, 2),
        "low_ms": round(1e3 * speed.low_s, 2), "high_ms": round(1e3 * speed.high_s, 2),
        "speed_up": round(speed.speed_up, 3), "mac_ratio": round(possible, 3),
        "of_mac_ratio": round(speed.speed_up / possible, 3), "rounds": cfg.rounds,
    }  # fmt: skip


def _models(cfg: DictConfig, device: torch.device) -> tuple[dict[str, nn.Module], tuple[int, int, int]]:
    """The uncompressed model with random weights and its compressed twins over the same parameters."""
    torch.manual_seed(cfg.seed)
    model = build(cfg.model.network).eval().to(device, pick_dtype(cfg.dtype))
    twins = {title: ttf.apply(shallow_twin(model), **options) for title, options in contestants(cfg).items()}
    return {BASE: model, **twins}, preprocessing(model).input_size


def measure(cfg: DictConfig) -> Iterator[Row]:
    """Rows of speed, the uncompressed model first, for every batch size of the config; weights are random."""
    device = pick_device(cfg.device)
    models, size = _models(cfg, device)
    known = provenance(device)
    place = {
        "device": known["device"], "torch": known["versions"]["torch"], "git": known["git"]["sha"],
        "dirty": known["git"]["dirty"], "date": date.today().isoformat(),
    }  # fmt: skip
    for batch in cfg.batch:
        images = torch.randn(batch, *size).to(device, pick_dtype(cfg.dtype))
        # counted on the timed images: the number of tokens may depend on these
        macs = {title: ttf.measure.gmacs(m, images.shape, images) / batch for title, m in models.items()}
        for title, speed in ttf.measure.interleaved(models, images, cfg.rounds).items():
            yield {**_row(cfg, title, batch, macs, speed), **place}


def write(rows: Sequence[Row], path: Path) -> None:
    """Write rows as CSV, whole or not at all. Raises ``ValueError`` where the folder cannot be written."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    atomic_write(path, lambda temporary: temporary.write_text(text.getvalue()))


def cells(rows: Sequence[Row]) -> list[list[str]]:
    """A table of speed, fastest per multiply-accumulate first within a batch size, header first."""
    header = ["batch", "method", "GMACs", "images/s", "median ms (range)", "speed-up", "MAC ratio", "of MAC ratio"]
    ordered = sorted(rows, key=lambda r: (r["batch"], r["method"] != BASE, -r["of_mac_ratio"]))
    return [header] + [
        [
            str(r["batch"]), r["method"], f"{r['gmacs']:.3f}", f"{r['images_per_s']:.1f}",
            f"{r['median_ms']:.1f} ({r['low_ms']:.1f} to {r['high_ms']:.1f})", f"{r['speed_up']:.2f}x",
            f"{r['mac_ratio']:.2f}x", f"{r['of_mac_ratio']:.2f}",
        ] for r in ordered
    ]  # fmt: skip
