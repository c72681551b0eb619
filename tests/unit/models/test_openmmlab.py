"""OpenMMLab beside this project: names of Segmenter there and here, and mmcv without compiled operators."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from ttf import openmmlab
from ttf.models.segmenter import Segmenter
from ttf.models.weights import load_strictly

installed = pytest.mark.skipif(find_spec("mmseg") is None, reason="needs make setup EXTRAS=dev,openmmlab")
SMALL = {"img_size": 64, "num_classes": 5, "width": 64, "depth": 2, "heads": 1, "decoder_depth": 1}

FORWARD = """
import sys, torch
from ttf import openmmlab
openmmlab.prepare()
import mmengine
from mmseg.utils import register_all_modules
register_all_modules(init_default_scope=True)
from mmseg.registry import MODELS
backbone = dict(
    type="VisionTransformer", img_size=(64, 64), patch_size=16, embed_dims=64, num_layers=2, num_heads=1,
    drop_path_rate=0.0, final_norm=True, norm_cfg=dict(type="LN", eps=1e-5), with_cls_token=True, patch_bias=True,
    interpolate_mode="bilinear",
)
head = dict(
    type="SegmenterMaskTransformerHead", in_channels=64, channels=64, num_classes=5, num_layers=1, num_heads=1,
    embed_dims=64, dropout_ratio=0.0, loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False),
)
model = MODELS.build(dict(type="EncoderDecoder", backbone=backbone, decode_head=head)).eval()
state, images, expected = torch.load(sys.argv[1], weights_only=True)
own = set(model.state_dict())
assert own == set(state), own ^ set(state)
model.load_state_dict(state)
with torch.no_grad():
    found = model.decode_head(model.backbone(images))
assert (found - expected).abs().max() < 1e-4 * expected.std(), (found - expected).abs().max()
import mmdet.models
from mmcv.ops import nms
try:
    nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
except RuntimeError as error:
    assert "compiled operator nms is not installed" in str(error)
"""


@pytest.fixture
def segmenter() -> Segmenter:
    torch.manual_seed(0)
    return Segmenter(**SMALL).eval()


def test_names_there_and_back(segmenter: Segmenter) -> None:
    state = segmenter.state_dict()
    there = openmmlab.to_mmsegmentation(state)
    assert there["backbone.layers.1.ffn.layers.0.0.weight"] is state["encoder.blocks.1.mlp.fc1.weight"]
    assert torch.equal(there["decode_head.patch_proj.weight"], state["decoder.proj_patch"].t())
    assert not any("head.weight" in name for name in there)
    other = Segmenter(**SMALL)
    load_strictly(other, openmmlab.from_mmsegmentation(there, other.state_dict()), "mmsegmentation's file")
    back = other.state_dict()
    assert all(torch.equal(back[name], state[name]) for name in state if not name.startswith("encoder.head."))


def test_other_names_are_refused(segmenter: Segmenter) -> None:
    with pytest.raises(ValueError, match="neck.weight is no tensor of a Segmenter"):
        openmmlab.to_mmsegmentation({"neck.weight": torch.zeros(1)})
    there = {**openmmlab.to_mmsegmentation(segmenter.state_dict()), "auxiliary_head.weight": torch.zeros(1)}
    with pytest.raises(ValueError, match="auxiliary_head.weight"):
        load_strictly(segmenter, openmmlab.from_mmsegmentation(there, segmenter.state_dict()), "file")


@pytest.mark.skipif(find_spec("mmcv") is not None, reason="mmcv is installed")
def test_without_mmcv_the_error_says_how_to_get_it() -> None:
    with pytest.raises(ValueError, match="EXTRAS=dev,openmmlab"):
        openmmlab.prepare()


@installed
@pytest.mark.slow
def test_mmsegmentation_computes_the_same(segmenter: Segmenter, tmp_path) -> None:
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = segmenter.forward_masks(images)
    path = tmp_path / "case.pt"
    torch.save((openmmlab.to_mmsegmentation(segmenter.state_dict()), images, expected), path)
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", FORWARD, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
