"""Methods that are fitted to their model, for a benchmark: on random images, since weights are random as well.

What such a method costs follows from its rates and the model; values move tokens between blocks. Prune and Merge on
DeiT-Ti, keep rates 0.4 to 0.8, has 0.1 to 0.3 % fewer multiply-accumulates than when fitted on photographs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from ttf.bench.entries import Benchmark, Entry
from ttf.building import build
from ttf.calibration import calibrate_on
from ttf.data.transforms import preprocessing

IMAGES = 2  # maps of attention with their gradients stay in memory


def fit(model: nn.Module, images: Tensor, options: dict[str, Any]) -> dict[str, Any]:
    """Arguments of ``ttf.apply`` with the fitted method in place of ``calibrate``, for this model."""
    rates = {name: value for name, value in options["calibrate"].items() if name != "images"}
    method = calibrate_on(model, images, **rates)
    kept = {name: value for name, value in options.items() if name != "calibrate"}
    return {**kept, "method": method, "blocks": method.blocks}


def random_model(network: DictConfig, seed: int) -> tuple[nn.Module, Tensor]:
    """A model with random weights, in evaluation mode on the CPU, and random images for it (n, 3, H, W).

    No matrix is zero, as classifiers begin: nothing would have a gradient.
    """
    torch.manual_seed(seed)
    model = build(network).eval()
    for weight in model.parameters():
        if weight.ndim > 1 and not weight.any():
            nn.init.trunc_normal_(weight, std=0.02)
    return model, torch.randn(IMAGES, *preprocessing(model).input_size)


def fitted(benchmark: Benchmark, seed: int) -> Benchmark:
    """The benchmark with its methods fitted; itself where none is to be."""
    if not any(entry.is_unfitted for entry in benchmark.entries):
        return benchmark
    model, images = random_model(benchmark.model.network, seed)

    def ready(entry: Entry) -> Entry:
        if entry.options is None or not entry.is_unfitted:
            return entry
        return replace(entry, options=fit(model, images, entry.options), fitted_on=f"{IMAGES} random images")

    return replace(benchmark, entries=[ready(entry) for entry in benchmark.entries])
