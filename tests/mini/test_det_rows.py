"""Table 4 end to end: random detectors on a BCCD of three made-up images, rows and the table drawn from them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import initialize_config_dir
from PIL import Image
from torch import nn

from tests.composing import CONFIGS, composed
from ttf import experiments
from ttf.bench.counting import counted
from ttf.models.detector import swin_mini, vitdet_ti
from ttf.models.vit_mini import vitdet_mini
from ttf.models.weights import save_weights
from ttf.report import budgets
from ttf.results.measured import read
from ttf.tasks import drawn_boxes

SIZE = {"model.inference.shorter": 96, "model.inference.longer": 128}
OBJECT = "<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"


@pytest.fixture
def bccd(tmp_path: Path) -> str:
    """Three images, the last one without objects."""
    base, rng = tmp_path / "bccd" / "BCCD", np.random.default_rng(0)
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (base / folder).mkdir(parents=True)
    found = {"a": [("RBC", 5, 5, 60, 70)], "b": [("WBC", 20, 10, 90, 80), ("Platelets", 100, 50, 120, 70)], "c": []}
    for name, objects in found.items():
        pixels = rng.integers(0, 255, (96, 128, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(base / "JPEGImages" / f"{name}.jpg")
        text = "".join(OBJECT.format(*each) for each in objects)
        (base / "Annotations" / f"{name}.xml").write_text(f"<annotation>{text}</annotation>")
    (base / "ImageSets" / "Main" / "test.txt").write_text("\n".join(found))
    return f"paths.bccd={base.parent}"


@pytest.fixture
def given(tmp_path: Path, bccd: str, stir: Callable[[nn.Module], nn.Module]) -> Callable[[str], list[str]]:
    """Overrides for a random model."""

    def make(name: str) -> list[str]:
        torch.manual_seed(0)
        path = tmp_path / f"{name}.safetensors"
        save_weights(stir({"swin_mini": swin_mini, "vitdet_ti": vitdet_ti}[name]()), path)
        return [f"model={name}", f"checkpoint={path}", bccd, *(f"{key}={value}" for key, value in SIZE.items())]

    return make


def test_windows_in_rows(given: Callable[[str], list[str]], evaluate: Callable[..., Any], tmp_path: Path):
    ways: dict[str, list[str]] = {"none": [], "places": ["ratio=0.33"], "grid": ["ratio=0.33"], "apart": ["ratio=0.33"]}
    ways["hourglass"] = ["ratio=0.33"]
    rows = {name: evaluate(f"experiment=table4/swin_{name}", *given("swin_mini"), *way) for name, way in ways.items()}
    assert rows["none"]["images"] == 3 and rows["none"]["metrics"]["agreement"]["value"] == 100
    assert len({row["id"] for row in rows.values()}) == 5
    assert rows["grid"]["config"]["windows"] == "grid" and "windows" not in rows["places"]["config"]
    assert all(row["gmacs"] < rows["none"]["gmacs"] for name, row in rows.items() if name != "none")
    measured = read(f"{tmp_path}/rows", f"{tmp_path}/runs")
    (entry,) = budgets.gather(experiments.load("table4"), measured, ["swin_mini"])
    head, *lines = budgets.cells(entry)
    assert head[2:5] == ["GMACs", "% of uncompressed", "AP % [95 %]"] and len(lines) == 5
    assert (
        evaluate("experiment=table4/swin_places", *given("swin_mini"), "ratio=0.33", "windows=places")["id"]
        == rows["places"]["id"]
    )


def test_a_plain_vit(given: Callable[[str], list[str]], evaluate: Callable[..., Any]):
    base, ours = (
        evaluate(f"experiment=table4/{name}", *given("vitdet_ti"), *way)
        for name, way in (("none", []), ("ours_default", ["ratio=0.5"]))
    )
    assert ours["gmacs"] < 0.9 * base["gmacs"] and [layer["block"] for layer in ours["tokens"]] == [4, 7, 10]
    assert set(ours["metrics"]) == set(base["metrics"]) and -1 <= ours["metrics"]["ap"]["value"] <= 100


def test_the_backbone_is_counted_as_published(configured: Callable[..., Any], monkeypatch: pytest.MonkeyPatch):
    config = configured("experiment=table4/once_shifted", "model=dino_swin_l")
    small = {"_target_": "ttf.models.swin.SwinTransformer", "width": 16, "heads": [1, 2, 4, 4], "window": 4}
    config.model.counted = {**small, "input_size": 128}
    line = counted(config)
    assert 0 < line["gmacs"] < 1 and line["blocks"] == "[4]"


def test_settings_of_windows_are_for_windows(given: Callable[[str], list[str]], evaluate: Callable[..., Any]):
    with pytest.raises(ValueError, match="this model has no windows: leave windows out"):
        evaluate("experiment=table4/ours_default", *given("vitdet_ti"), "windows=grid")
    with pytest.raises(ValueError, match="no place in the map: set windows=grid"):
        evaluate("task=det", "method=hourglass", *given("swin_mini"))


def test_boxes_of_scenes_offline(
    evaluate: Callable[..., Any], stir: Callable[[nn.Module], nn.Module], tmp_path: Path
):  # fmt: skip
    save_weights(stir(vitdet_mini()), tmp_path / "weights.safetensors")
    mini = ["model=vitdet_mini", f"checkpoint={tmp_path}/weights.safetensors", "limit=3"]
    rows = [evaluate(f"experiment=table4/{name}", *mini) for name in ("none", "ours_default")]
    assert rows[1]["gmacs"] < rows[0]["gmacs"] and rows[0]["metrics"]["agreement"]["value"] == 100


def test_boxes_side_by_side(given: Callable[[str], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With what is left of each window; random models find nothing that they are sure of."""
    found: list[Any] = []
    monkeypatch.setattr(drawn_boxes, "figure", lambda *told: found.append(told))
    ways = 'ways=["table4/swin_places ratio=0.33","table4/swin_hourglass ratio=0.33"]'
    cfg = composed("visualize", "task=det", *given("swin_mini"), "pick=[0,1]", ways)
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        drawn_boxes.picture(cfg, tmp_path / "boxes.png", cfg.pick)
    examples, classes, *_ = found[0]
    assert classes == ("RBC", "WBC", "Platelets") and len(examples) == 2
    assert {len(one.truth.labels) for one in examples} < {0, 1, 2}
    for one in examples:
        assert one.window == 7 and list(one.found) == ["uncompressed", "ours, places", "Hourglass"]
        assert one.tokens["ours, places"].shape == (6, 8)
        assert 0 < one.tokens["ours, places"].sum() <= 0.5 * 48
