"""Fixtures of the end-to-end tests: composed configs, a small ImageNet, a small model's checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from omegaconf import DictConfig
from PIL import Image

from tests.composing import composed
from ttf.models.weights import save_weights
from ttf.results.store import Row
from ttf.tasks.run import execute

WNIDS = ("n01440764", "n01443537", "n01484850")
SMALL = {"img_size": 32, "patch_size": 8, "depth": 4, "embed_dim": 48, "num_heads": 3}


@pytest.fixture
def configured(tmp_path: Path) -> Callable[..., DictConfig]:
    """Compose ``eval`` with rows and caches in a temporary folder, 32 images, no timing."""

    def make(*overrides: str) -> DictConfig:
        places = [f"paths.{name}={tmp_path}/{name}" for name in ("rows", "runs", "cache")]
        return composed("eval", "limit=32", "throughput.batch_size=0", *places, *overrides)

    return make


@pytest.fixture
def evaluate(configured: Callable[..., DictConfig]) -> Callable[..., Row]:
    return lambda *overrides: execute(configured(*overrides))


@pytest.fixture
def imagenet(tmp_path: Path) -> Path:
    """Three classes of four JPEGs in ImageNet's layout."""
    rng = np.random.default_rng(0)
    for wnid in WNIDS:
        folder = tmp_path / "imagenet" / "val" / wnid
        folder.mkdir(parents=True)
        for number in range(4):
            pixels = rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"photograph_{number:08d}.JPEG")
    return tmp_path / "imagenet"


@pytest.fixture
def small(tmp_path: Path, imagenet: Path) -> list[str]:
    """Overrides that evaluate a small random model on that ImageNet."""
    torch.manual_seed(0)
    checkpoint = tmp_path / "small.safetensors"
    save_weights(timm.create_model("vit_tiny_patch16_224", **SMALL), checkpoint)
    network = [f"+model.network.{key}={value}" for key, value in SMALL.items()]
    name = "model.network.model_name=vit_tiny_patch16_224"
    return ["model=vit_ti_augreg", name, *network, f"checkpoint={checkpoint}", f"paths.imagenet={imagenet}"]
