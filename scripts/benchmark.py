"""Speed, compressed beside uncompressed: ``python scripts/benchmark.py model=deit_s ratio=0.7``."""

from __future__ import annotations

import hydra
import torch
from omegaconf import DictConfig

import ttf
from ttf import cli
from ttf.building import build
from ttf.data.transforms import preprocessing
from ttf.measure.provenance import device_name
from ttf.stack import shallow_twin
from ttf.tasks.options import pick_device, pick_dtype, reduction


@hydra.main(version_base="1.3", config_path="../configs", config_name="benchmark")
def main(cfg: DictConfig) -> None:
    options = reduction(cfg)
    if options is None:
        raise ValueError("method=none compresses nothing: choose a method")
    device = pick_device(cfg.device)
    torch.manual_seed(cfg.seed)
    model = build(cfg.model.network).eval().to(device, pick_dtype(cfg.dtype))
    size = preprocessing(model).input_size
    twin = ttf.apply(shallow_twin(model), **options)
    macs = {name: ttf.measure.gmacs(m, size) for name, m in (("uncompressed", model), ("compressed", twin))}
    print(f"{cfg.model.name}, ratio {cfg.ratio}, {cfg.dtype}, {device_name(device)}, weights at random")
    possible = macs["uncompressed"] / macs["compressed"]
    for batch in cfg.batch:
        images = torch.randn(batch, *size).to(device, pick_dtype(cfg.dtype))
        speed = ttf.measure.interleaved({"uncompressed": model, "compressed": twin}, images, cfg.rounds)
        for name, s in speed.items():
            print(
                f"  batch {batch:4d}  {name:13s} {macs[name]:7.3f} GMACs  {s.images_per_s:9.1f} images/s  median "
                f"{1e3 * s.median_s:8.1f} ms ({1e3 * s.low_s:.1f} to {1e3 * s.high_s:.1f})"
            )
        gain = speed["compressed"].speed_up
        print(f"  batch {batch:4d}  speed-up {gain:.3f}x of {possible:.3f}x: {gain / possible:.3f} of the MAC ratio")


if __name__ == "__main__":
    cli.run(main)
