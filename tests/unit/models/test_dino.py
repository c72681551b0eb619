"""DINO with Swin-L by mmdet: what happens without it, a small detector end to end, and the real one where asked for."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from ttf.models import dino

installed = pytest.mark.skipif(find_spec("mmdet") is None, reason="needs make setup EXTRAS=dev,openmmlab")
LARGE = pytest.mark.skipif(not os.environ.get("TTF_GOLDEN_LARGE"), reason="218 M parameters: set TTF_GOLDEN_LARGE=1")

# mmdet's own config with a narrow Swin and two layers: an image goes through in a second
SMALL = """
_base_ = '{base}'
model = dict(
    num_queries=20,
    backbone=dict(embed_dims=16, depths=[1, 1, 4, 1], num_heads=[1, 2, 4, 8], window_size=7),
    neck=dict(in_channels=[16, 32, 64, 128]),
    encoder=dict(num_layers=1), decoder=dict(num_layers=2), test_cfg=dict(max_per_img=10))
"""
SCRIPT = """
import sys, json, torch, ttf
from pathlib import Path
from PIL import Image
from ttf.data.detection import Coco
from ttf.models.dino import dino_swin_l
from ttf.tasks import Detection
from ttf.tasks.detection import Detecting
root = Path(sys.argv[1])
(root / "val2017").mkdir(parents=True); (root / "annotations").mkdir()
torch.manual_seed(0)
for i in range(3):
    Image.fromarray(torch.randint(255, (90 + i, 120, 3), dtype=torch.uint8).numpy()).save(root / f"val2017/{i}.jpg")
images = [{"id": i, "file_name": f"{i}.jpg"} for i in range(3)]
box = {"id": 1, "image_id": 0, "category_id": 5, "bbox": [3, 4, 50, 60], "area": 2000, "iscrowd": 0}
content = {"images": images, "categories": [{"id": c, "name": str(c)} for c in (1, 5)], "annotations": [box]}
(root / "annotations/instances_val2017.json").write_text(json.dumps(content))
model = dino_swin_l(num_classes=2, config=sys.argv[2]).eval()
task = Detection(Coco(root), model, inference=Detecting(128, 213))
base = task.evaluate()
assert base["agreement"]["value"] == 100 and 0 <= base["ap"]["value"] <= 100, base
names = set(model.state_dict())
for way in ({}, {"windows": "grid"}, {"shift": "none", "blocks": [2, 4]}):
    found = task.evaluate(ratio=0.6, **way)
    assert set(found) == set(base)
    with ttf.applied(model, ratio=0.6, **way):
        assert set(model.state_dict()) == names
        assert ttf.trace(model, task.images([0]))[0].W.shape[1] < 8 * 10
assert model.detector.backbone.stages[2].blocks[0].__class__.__module__.startswith("mmdet")
"""


def test_without_mmdet(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dino, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match="make setup EXTRAS=dev,openmmlab"):
        dino.dino_swin_l()


@installed
def test_what_mmdet_has_no_config_of(tmp_path: Path):
    with pytest.raises(ValueError, match="for .12, 36. epochs, got 24"):
        dino.dino_swin_l(epochs=24)


@installed
def test_a_small_detector_from_mmdets_config(tmp_path: Path):
    spec = find_spec("mmdet")
    assert spec and spec.submodule_search_locations
    base = Path(spec.submodule_search_locations[0]) / ".mim/configs/dino/dino-5scale_swin-l_8xb2-36e_coco.py"
    config = tmp_path / "small.py"
    config.write_text(SMALL.format(base=base))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "coco"), str(config)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-1500:]


@installed
@LARGE
def test_the_real_one():
    model = dino.dino_swin_l()
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(218.459e6, abs=500)
