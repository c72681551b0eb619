"""Real weights on stored photographs against stored logits (folder: TTF_GOLDEN_METHODS)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from ttf.models.weights import load_model

CONFIGS = Path(__file__).parents[2] / "configs"
TOLERANCE = 0.02


@pytest.fixture(scope="module")
def golden(shared) -> Path:
    folder = Path(os.environ.get("TTF_GOLDEN_METHODS", shared / "golden" / "methods"))
    if not (folder / "end_to_end_inputs.safetensors").is_file():
        pytest.skip(f"needs {folder}/end_to_end_inputs.safetensors")
    return folder


@pytest.mark.real
def test_uncompressed_logits(golden, shared):
    model = load_model(OmegaConf.load(CONFIGS / "model" / "vit_ti_augreg.yaml"), folder=shared / "weights")
    pixels = load_file(golden / "end_to_end_inputs.safetensors")["pixels"]
    stored = load_file(golden / "end_to_end_vit_tiny.safetensors")
    with torch.inference_mode():
        logits = torch.cat([model((part.float() / 255 - 0.5) / 0.5) for part in pixels.split(25)])
    assert (logits - stored["base/logits"].float()).abs().max() < TOLERANCE
    assert (logits.argmax(1) == stored["base/top1"]).sum() >= 99
