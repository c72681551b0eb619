"""Real weights on stored photographs against logits of the official implementations (folders: TTF_GOLDEN_METHODS).

What a configuration is follows from its name, so other numbers in the names work too.

Images all of whose decisions are clearer than the noise of float32 (see ``margins``) must agree on every machine. Near
ties must agree too but for a few: on another processor they may go the other way, in all layers after that as well.
"""

from __future__ import annotations

import json
import re
from contextlib import nullcontext
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

import ttf
from tests.golden.blocks import FOLDERS
from tests.golden.margins import Clearness, watched
from ttf.config_store import model as config
from ttf.methods.atc import ATC
from ttf.methods.diffrate import from_counts, published
from ttf.methods.evit import EViT
from ttf.methods.mctf import MCTF
from ttf.methods.pitome import PiToMe
from ttf.methods.ppt import PPT
from ttf.methods.tofu import ToFu
from ttf.methods.tome import ToMe
from ttf.models.weights import load_model
from ttf.schedule import KeepRatio, RemovePerBlock, RemoveShare

TOLERANCE = 0.02
# Shares of the images: near ties (at most 9 % here), and those of them that may fall the other way. PiToMe and MCTF put
# tokens into the order of their scores and pair them by place, so that some near tie is in every image.
NEAR = {"pitome": 1.0, "mctf": 1.0}
OTHER_WAY = {"pitome": 0.1, "mctf": 0.1}
INPUTS = "end_to_end_inputs.safetensors"
BLOCKS = (3, 6, 9)
INFLECTIONS = {None: 0.0, "decreasing": -1.0, "increasing": 1.0}
AUTHORS = {"T": "ViT-T-DeiT", "S": "ViT-S-DeiT", "B": "ViT-B-DeiT"}


class Stored(NamedTuple):
    """One file of official logits: its tensors, its metadata (parsed where it is JSON), and the photographs."""

    tensors: dict[str, Tensor]
    texts: dict[str, Any]
    pixels: Tensor


@cache
def _stored(folder: Path) -> Stored:
    """The photographs are in the file, beside it, or in another of the folders."""
    path = folder / "end_to_end_vit_tiny.safetensors"
    with safe_open(path, "pt") as file:
        texts = file.metadata() or {}
    tensors = load_file(path)
    inputs = [load_file(at / INPUTS)["pixels"] for at in _places(folder)] if "pixels" not in tensors else []
    pixels = tensors["pixels"] if "pixels" in tensors else inputs[0]
    parsed = {key: json.loads(text) if text[:1] in "[{" else text for key, text in texts.items()}
    return Stored(tensors, parsed, pixels)


def _places(folder: Path) -> list[Path]:
    return [at for at in (folder, folder.parent / "methods", *FOLDERS) if (at / INPUTS).is_file()]


def _names() -> list[tuple[Path, str]]:
    """Every configuration of every folder that has logits and the photographs to them."""
    found = []
    for folder in FOLDERS:
        path = folder / "end_to_end_vit_tiny.safetensors"
        if path.is_file():
            with safe_open(path, "pt") as file:
                keys = sorted(file.keys())
            if "pixels" in keys or _places(folder):
                found += [(folder, key.removesuffix("/logits")) for key in keys if key.endswith("/logits")]
    return found


RUNS = _names()
ABSENT = f"needs the end-to-end reference data in {FOLDERS}"
runs = pytest.mark.parametrize(
    ("folder", "name"), RUNS or [(None, "base")], ids=lambda part: getattr(part, "name", part)
)


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
    texts = next((_stored(folder).texts for folder, name in RUNS if name == f"diffrate_vit{model}_{target}"), {})
    if "diffrate_prune_kept" in texts:
        method, schedule = from_counts(texts["diffrate_prune_kept"], texts["diffrate_merge_kept"])
    else:
        method, schedule = published(AUTHORS[model], float(target))
    return {"method": method, "schedule": schedule}


def _pitome(ratio: str) -> dict[str, Any]:
    return {"method": PiToMe(), "schedule": RemoveShare(float(ratio))}


def _tofu(ratio: str) -> dict[str, Any]:
    return {"method": ToFu(), "schedule": RemoveShare(float(ratio), counted=1)}


def _mctf(r: str | None, share: str | None, blocks: str | None) -> dict[str, Any]:
    places = tuple(range(1, 12)) if blocks is None else tuple(int(digit) for digit in blocks)
    schedule = RemovePerBlock(int(r), places) if r else RemoveShare(1 - float(share), places)
    return {"method": MCTF(place="entrance"), "schedule": schedule}


def _atc(linkage: Any, r: str) -> dict[str, Any]:
    return {"method": ATC(linkage), "schedule": RemovePerBlock(int(r) - 1)}  # the patch removes one less than asked for


FAMILIES = {
    r"tome_r(\d+)(_noprop)?(?:_(decreasing|increasing))?": _tome,
    r"evit_(\d+)_(fuse|nofuse)": _evit,
    r"ppt_r(\d+)_(?:thr([\d.e+-]+)|(pool|prune)_only)": _ppt,
    r"diffrate_vit([TSB])_([\d.]+)": _diffrate,
    r"pitome_ratio([\d.]+)": _pitome,
    r"tofu_ratio([\d.]+)": _tofu,
    r"mctf_(?:r(\d+)|ratio([\d.]+))(?:_blocks(\d+))?": _mctf,
    r"atc_(average|complete|single)_r(\d+)": _atc,
}


def configuration(name: str) -> dict[str, Any]:
    """Arguments of ``ttf.apply`` for a configuration's name."""
    for pattern, make in FAMILIES.items():
        if found := re.fullmatch(pattern, name):
            return make(*found.groups())
    raise ValueError(f"configuration {name!r} is of no known family")


@pytest.fixture(scope="module")
def model(shared) -> torch.nn.Module:
    return load_model(config("vit_ti_augreg"), folder=shared / "weights")


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
@pytest.mark.skipif(not RUNS, reason=ABSENT)
@runs
def test_logits(folder: Path, name: str, model):
    stored = _stored(folder)
    logits, clearness = run(model, stored.pixels, name)
    images, family = len(logits), name.split("_")[0]
    top1, margin = stored.tensors[f"{name}/top1"], stored.tensors[f"{name}/top1_margin"]
    off = (logits - stored.tensors[f"{name}/logits"].float()).abs().amax(1) >= TOLERANCE
    near = clearness < 1
    assert (off & ~near).nonzero().flatten().tolist() == []
    assert near.sum() <= NEAR.get(family, 0.15) * images
    assert off.sum() <= OTHER_WAY.get(family, 0.03) * images
    wrong = (logits.argmax(1) != top1) & ~off
    assert wrong.sum() <= 1
    assert (margin[wrong] < TOLERANCE).all()
    right = (top1 == stored.tensors["labels"]).sum().item()
    assert right == round(stored.texts["top1_percent"][name] / 100 * images)


@pytest.mark.real
@pytest.mark.skipif(not RUNS, reason=ABSENT)
@pytest.mark.parametrize(
    ("folder", "name"),
    {run[1].split("_")[0]: run for run in RUNS if run[1] != "base"}.values() or [(None, "base")],
    ids=lambda part: getattr(part, "name", part),
)
def test_noise(folder: Path, name: str, model):
    """The smallest gaps in float64 are those in float32 but for less than the noise, one configuration a family."""
    if NEAR.get(name.split("_")[0]) == 1.0:
        pytest.skip("the order of tokens decides, which is never clear")
    pixels = _stored(folder).pixels[:4]
    double = run(deepcopy(model).double(), pixels, name, torch.float64)[1]
    single = run(model, pixels, name)[1]
    clear = torch.minimum(single, double) >= 1
    assert clear.sum() >= 2
    assert (single - double)[clear].abs().max() < 0.5


@pytest.mark.parametrize(("folder", "name"), [run for run in RUNS if run[1].startswith("diffrate")] or [(None, None)])
def test_published_numbers_are_those_of_the_reference(folder: Path | None, name: str | None):
    """The numbers in the package are those that the reference says it was made with."""
    found = re.fullmatch(r"diffrate_vit([TSB])_([\d.]+)", name or "")
    if not found or folder is None or "diffrate_prune_kept" not in _stored(folder).texts:
        pytest.skip("the reference says nothing about it")
    texts = _stored(folder).texts
    theirs = from_counts(texts["diffrate_prune_kept"], texts["diffrate_merge_kept"])
    assert published(AUTHORS[found[1]], float(found[2])) == theirs
