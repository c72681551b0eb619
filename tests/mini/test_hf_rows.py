"""model=hf from a folder to a row, without a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.mini.test_scripts import places, script
from tests.scripts_under_test import fresh

transformers: Any = pytest.importorskip("transformers", reason="needs transformers: pip install 'ttf[hf]'")

SMALL = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "image_size": 32,
    "patch_size": 8,
    "num_labels": 1000,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    transformers.ViTForImageClassification(transformers.ViTConfig(**SMALL)).save_pretrained(tmp_path / "vit")
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "vit")
    return tmp_path / "vit"


@pytest.mark.parametrize("override", ["network.name", "model.network.name"])
def test_a_row_of_a_folder(override: str, folder: Path, imagenet: Path, tmp_path: Path) -> None:
    out = tmp_path / "row.json"
    told = [f"{override}={folder}", f"paths.imagenet={imagenet}", "throughput.batch_size=0", f"out={out}"]
    told += ["model.name=mine"] if override.startswith("model") else []
    done = script("eval", tmp_path, "model=hf", *told, "ratio=0.5", f"paths.cache={tmp_path}/cache")
    assert done.returncode == 0, done.stderr
    row = json.loads(out.read_text())
    assert row["images"] == 12 and row["gmacs"] > 0
    assert {"top1", "top5", "kl"} <= row["metrics"].keys() and row["metrics"]["kl"]["value"] > 0
    assert [layer["block"] for layer in row["tokens"]] == [1, 2, 3]
    assert row["preprocessing"]["crop_mode"] == "squash" and row["preprocessing"]["input_size"] == [3, 32, 32]
    assert row["config"]["model"]["network"]["name"] == str(folder)


def test_the_uncompressed_row_costs_more(folder: Path, imagenet: Path, evaluate: Any) -> None:
    told = ["model=hf", f"network.name={folder}", f"paths.imagenet={imagenet}"]
    plain, ours = evaluate(*told, "method=none"), evaluate(*told, "ratio=0.5")
    assert plain["gmacs"] > ours["gmacs"] and plain["metrics"]["agreement"]["value"] == 100


def test_a_name_is_needed_and_must_be_there(imagenet: Path, tmp_path: Path) -> None:
    done = script("eval", tmp_path, "model=hf", f"paths.imagenet={imagenet}")
    assert done.returncode == 2 and "network.name" in done.stderr and "Traceback" not in done.stderr
    told = ["model=hf", "network.name=nobody/nothing", f"paths.imagenet={imagenet}"]
    done = fresh("scripts/eval.py", *told, *places(tmp_path), HF_HUB_OFFLINE="1")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("error: nobody/nothing could not be loaded")
