"""Real weights on stored photographs against logits of the official implementations (folder: TTF_GOLDEN_METHODS).

What a configuration is follows from its name, so other numbers in the names work too.

Images all of whose decisions are clearer than the noise of float32 (see ``margins``) must agree on every machine. Near
ties must agree too but for a few: on another processor they may go the other way, in all layers after that as well.
"""

from __future__ import annotations

import json
import re
from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

import ttf
from tests.golden.blocks import FOLDER
from tests.golden.margins import Clearness, watched
from ttf.methods.diffrate import from_counts, published
from ttf.methods.evit import EViT
from ttf.methods.ppt import PPT
from ttf.methods.tome import ToMe
from ttf.models.weights import load_model
from ttf.schedule import KeepRatio, RemovePerBlock

CONFIGS = Path(__file__).parents[2] / "configs"
INPUTS, STORED = FOLDER / "end_to_end_inputs.safetensors", FOLDER / "end_to_end_vit_tiny.safetensors"
TOLERANCE = 0.02
NEAR, OTHER_WAY = 15, 3  # of 100 images: near ties, at most 9 here; those of them that fall the other way
BLOCKS = (3, 6, 9)
INFLECTIONS = {None: 0.0, "decreasing": -1.0, "increasing": 1.0}
AUTHORS = {"T": "ViT-T-DeiT", "S": "ViT-S-DeiT", "B": "ViT-B-DeiT"}


def _contents() -> tuple[list[str], dict[str, Any]]:
    """The configurations in the file and its metadata, parsed where it is JSON; nothing where there is no file."""
    if not STORED.is_file():
        return [], {}
    with safe_open(STORED, "pt") as file:
        names = [key.removesuffix("/logits") for key in file.keys() if key.endswith("/logits")]  # noqa: SIM118
        texts = file.metadata() or {}
    return names, {key: json.loads(text) if text[:1] in "[{" else text for key, text in texts.items()}


NAMES, METADATA = _contents()
ABSENT = f"needs the end-to-end reference data in {FOLDER}"


def _tome(r: str, scaling: str | None, trend: str | None) -> dict[str, Any]:
    schedule = RemovePerBlock(int(r), inflection=INFLECTIONS[trend], depth=12)
    return {"method": ToMe(scaling=scaling is None), "schedule": schedule}


def _evit(digits: str, fuse: str) -> dict[str, Any]:
    ratio = int(digits) / 10 ** (len(digits) - 1)  # 07 is 0.7, 065 is 0.65
    return {"method": EViT(fuse == "fuse"), "schedule": KeepRatio(ratio, BLOCKS, "ceil")}


def _ppt(r: str, threshold: str | None, mode: str | None) -> dict[str, Any]:
    method = PPT(mode=mode) if mode else PPT(float(threshold))
    return {"method": method, "schedule": RemovePerBlock(int(r), BLOCKS)}


def _diffrate(model: str, target: str) -> dict[str, Any]:
    if "diffrate_prune_kept" in METADATA:
        method, schedule = from_counts(METADATA["diffrate_prune_kept"], METADATA["diffrate_merge_kept"])
    else:
        method, schedule = published(AUTHORS[model], float(target))
    return {"method": method, "schedule": schedule}


FAMILIES = {
    r"tome_r(\d+)(_noprop)?(?:_(decreasing|increasing))?": _tome,
    r"evit_(\d+)_(fuse|nofuse)": _evit,
    r"ppt_r(\d+)_(?:thr([\d.e+-]+)|(pool|prune)_only)": _ppt,
    r"diffrate_vit([TSB])_([\d.]+)": _diffrate,
}


def configuration(name: str) -> dict[str, Any]:
    """Arguments of ``ttf.apply`` for a configuration's name."""
    for pattern, make in FAMILIES.items():
        if found := re.fullmatch(pattern, name):
            return make(*found.groups())
    raise ValueError(f"configuration {name!r} is of no known family")


@pytest.fixture(scope="module")
def stored() -> dict[str, Tensor]:
    return load_file(STORED)


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    return load_file(INPUTS)["pixels"]


@pytest.fixture(scope="module")
def model(shared) -> torch.nn.Module:
    return load_model(OmegaConf.load(CONFIGS / "model" / "vit_ti_augreg.yaml"), folder=shared / "weights")


def run(model: torch.nn.Module, pixels: Tensor, name: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Logits of a configuration, and how clearly it decided about each image (``Clearness.smallest``)."""
    options = {} if name == "base" else configuration(name)
    logits, smallest = [], []
    for part in pixels.split(25):
        clearness, compressed = Clearness(options.get("method"), len(part)), nullcontext()
        if options:
            compressed = ttf.applied(model, **{**options, "method": watched(clearness.method, clearness.note)})
        with torch.inference_mode(), compressed:
            logits.append(model((part.to(dtype) / 255 - 0.5) / 0.5))
        assert (clearness.smallest < torch.inf).all() == bool(options), "no decision was seen"
        smallest.append(clearness.smallest)
    return torch.cat(logits), torch.cat(smallest)


@pytest.mark.real
@pytest.mark.skipif(not NAMES or not INPUTS.is_file(), reason=ABSENT)
@pytest.mark.parametrize("name", NAMES or ["base"])
def test_logits(name: str, stored, pixels, model):
    logits, clearness = run(model, pixels, name)
    top1, margin = stored[f"{name}/top1"], stored[f"{name}/top1_margin"]
    off, near = (logits - stored[f"{name}/logits"].float()).abs().amax(1) >= TOLERANCE, clearness < 1
    assert (off & ~near).nonzero().flatten().tolist() == []
    assert near.sum() <= NEAR
    assert off.sum() <= OTHER_WAY
    wrong = (logits.argmax(1) != top1) & ~off
    assert wrong.sum() <= 1
    assert (margin[wrong] < TOLERANCE).all()
    assert (top1 == stored["labels"]).sum().item() == round(METADATA["top1_percent"][name] / 100 * len(pixels))


@pytest.mark.real
@pytest.mark.skipif(not NAMES or not INPUTS.is_file(), reason=ABSENT)
@pytest.mark.parametrize("name", {name.split("_")[0]: name for name in NAMES if name != "base"}.values() or ["base"])
def test_noise(name: str, pixels, model):
    """The smallest gaps in float64 are those in float32 but for less than the noise, one configuration a family."""
    double = run(deepcopy(model).double(), pixels[:4], name, torch.float64)[1]
    single = run(model, pixels[:4], name)[1]
    clear = torch.minimum(single, double) >= 1
    assert clear.sum() >= 2
    assert (single - double)[clear].abs().max() < 0.5


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("diffrate")] or [None])
def test_published_numbers_are_those_of_the_reference(name: str | None):
    """The numbers in the package are those that the reference says it was made with."""
    found = re.fullmatch(r"diffrate_vit([TSB])_([\d.]+)", name or "")
    if not found or "diffrate_prune_kept" not in METADATA:
        pytest.skip("the reference says nothing about it")
    theirs = from_counts(METADATA["diffrate_prune_kept"], METADATA["diffrate_merge_kept"])
    assert published(AUTHORS[found[1]], float(found[2])) == theirs
