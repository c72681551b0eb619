"""Model definitions against the official implementations: names, shapes, and the same function of the weights.

Folder of the reference data: TTF_GOLDEN_MODELS, default ../shared/golden/models. Every file of its schema is checked,
with its own salts and seeds.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from tests.golden.models import (
    FOLDER,
    LIMIT,
    Reference,
    check_statistics,
    check_sums,
    draw_input,
    fill,
    probed,
    references,
    too_large,
)
from ttf.models.dpt import DPT, Inverse, StandardizedConv
from ttf.models.lv_vit import LVViT
from ttf.models.mae import from_official, mae_vit
from ttf.models.ps_vit import PSViT
from ttf.models.swin import SwinBlock, SwinTransformer
from ttf.models.t2t_vit import T2TViT, Transformer
from ttf.models.trunk import Divide

REFERENCES = references()
needs_data = pytest.mark.skipif(not REFERENCES, reason=f"needs the reference data of model definitions in {FOLDER}")
EACH = [pytest.param(reference, id=reference.stem) for reference in REFERENCES] or [None]


def _fills() -> list[Any]:
    found = []
    for reference in REFERENCES:
        slow = ("mae_vit_h14", "segmenter_l_mask", "dpt_hybrid_nyu")
        large = [pytest.mark.slow] if reference.model in slow else []
        kinds = ["normal", "strong"] if "strong_fill" in reference.golden else ["normal"]
        found += [pytest.param(reference, kind, id=f"{reference.stem}-{kind}", marks=large) for kind in kinds]
    return found or [(None, "normal")]


def _skip_unless(reference: Reference, part: str) -> None:
    if reference.missing:
        pytest.skip(reference.missing)
    if not getattr(reference, part):
        pytest.skip(f"{reference.stem} has no {part} file")


@needs_data
@pytest.mark.parametrize("reference", EACH)
def test_names_shapes_and_counts(reference: Reference):
    _skip_unless(reference, "keys")
    model = reference.build()
    state = model.state_dict()
    assert {name: list(tensor.shape) for name, tensor in state.items()} == reference.keys["state_dict"]
    others = {name: str(t.dtype).removeprefix("torch.") for name, t in state.items() if t.dtype != torch.float32}
    assert others == reference.keys["dtypes_other_than_float32"]
    assert sum(p.numel() for p in model.parameters()) == reference.keys["parameters"]
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == reference.keys["parameters_trainable"]
    assert sum(b.numel() for b in model.buffers()) == reference.keys["buffers"]


@needs_data
@pytest.mark.parametrize("reference", EACH)
def test_preprocessing(reference: Reference):
    _skip_unless(reference, "keys")
    stated, known = reference.build().pretrained_cfg, reference.keys
    assert list(stated["input_size"]) == known["input_size"]
    assert (list(stated["mean"]), list(stated["std"])) == (known["image_mean"], known["image_std"])
    if known.get("crop_fraction"):
        assert (stated["crop_pct"], stated["interpolation"]) == (known["crop_fraction"], known["interpolation"])


@needs_data
@pytest.mark.parametrize("reference", EACH)
def test_settings_that_the_tolerances_cannot_see(reference: Reference):
    _skip_unless(reference, "golden")
    model: Any = reference.build()
    if isinstance(model, DPT):
        return _settings_of_dpt(model)
    own = not isinstance(model, VisionTransformer)
    assert {m.eps for m in model.modules() if isinstance(m, nn.LayerNorm)} == {1e-5 if own else 1e-6}
    assert {m.eps for m in model.modules() if isinstance(m, nn.BatchNorm2d)} <= {1e-5}
    blocks: list[Any] = [m for m in model.modules() if isinstance(m, Block | SwinBlock)]
    scale = 32**-0.5 if isinstance(model, SwinTransformer) else 64**-0.5 if own else 80**-0.5
    assert {block.attn.scale for block in blocks} == {scale}
    assert {m.approximate for m in model.modules() if isinstance(m, nn.GELU)} == {"none"}
    if isinstance(model, LVViT):
        assert {part.by for block in model.blocks for part in (block.ls1, block.ls2)} == {2.0}
    if isinstance(model, T2TViT) and isinstance(model.tokens_to_token.attention1, Transformer):
        layers = (model.tokens_to_token.attention1, model.tokens_to_token.attention2)
        assert [layer.attn.scale for layer in layers] == [147**-0.5, 576**-0.5]
    if isinstance(model, PSViT):
        assert {layer.gamma for layer in model.ps_layers} == {1.0}


def _settings_of_dpt(model: DPT) -> None:
    """eps of LayerNorm 1e-6 and of GroupNorm 1e-5, exact GELU, standardised weights, NYUv2's scale and shift."""
    kinds = {nn.LayerNorm: 1e-6, nn.GroupNorm: 1e-5}
    for kind, eps in kinds.items():
        assert {m.eps for m in model.modules() if isinstance(m, kind)} == {eps}
    assert {m.approximate for m in model.modules() if isinstance(m, nn.GELU)} == {"none"}
    backbone: Any = model.vit.patch_embed
    convs = [m for m in backbone.backbone.modules() if isinstance(m, nn.Conv2d)]
    assert len(convs) == 52 and all(isinstance(m, StandardizedConv) for m in convs)
    assert isinstance(model.output, Inverse) and (model.output.scale, model.output.shift) == (0.000305, 0.1378)


@needs_data
@pytest.mark.parametrize("reference", EACH)
def test_fixed_tables(reference: Reference):
    _skip_unless(reference, "golden")
    golden = reference.golden
    if not {"pos_embed_table", "initial_points_first4"} & golden.keys():
        pytest.skip(f"{reference.stem} has no fixed tables")
    model: Any = reference.build()
    if "pos_embed_table" in golden:
        table = golden["pos_embed_table"]
        check_statistics(model.pos_embed, table)
        for row in (1, 196):
            _equal(model.pos_embed[0, row, :4], table[f"row{row}_first4"])
    else:
        points = model.point_coord[0]
        assert points[:4].tolist() == golden["initial_points_first4"]
        assert points[14:16].tolist() == golden["initial_points_at_14_15"]
        assert points[-1].tolist() == golden["initial_points_last"]


def _equal(values: Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(values, torch.tensor(expected), rtol=0, atol=1e-6)


def _check_fill(model: nn.Module, sums: dict[str, Any], expected: dict[str, Any]) -> None:
    state = model.state_dict()
    assert {key: sums[key] for key in ("filled_tensors", "filled_elements")} == {
        key: expected[key] for key in ("filled_tensors", "filled_elements")
    }
    check_sums(sums, expected)
    example = expected["example"]
    _equal(state[example["name"]].flatten()[:4], example["first4"])
    assert all(torch.equal(state[alias], state[name]) for alias, name in expected["aliases_of"].items())


def _check_input(x: Tensor, expected: dict[str, Any]) -> None:
    _equal(x.flatten()[:4], expected["first4"])
    check_sums({"sum": x.double().sum().item(), "sum_sq": x.double().square().sum().item()}, expected)


def _check_output(out: Any, expected: dict[str, Any], limit: float = LIMIT) -> None:
    if "feature maps" in expected:
        for found, wanted in zip(out, expected["feature maps"], strict=True):
            check_statistics(found, wanted)
        return
    check_statistics(out, expected, limit)
    if "argmax" in expected:  # classifiers; equal up to ties
        named = out.gather(1, torch.tensor(expected["argmax"]).unsqueeze(1)).squeeze(1)
        assert (out.amax(1) - named <= 2 * LIMIT * expected["std"]).all()


def _check_more_inputs(model: nn.Module, golden: dict[str, Any]) -> None:
    """Sizes that no stride divides, where the reference has such."""
    if "second_input" in golden:
        second = golden["second_input"]
        x = draw_input(second["input"])
        _check_input(x, second["input"])
        _check_output(model(x), second["output"])
    if "window_aligned_input" in golden:
        aligned = golden["window_aligned_input"]
        x = draw_input(aligned["input"])
        _check_input(x, aligned["input"])
        _check_output(model(x), aligned)


def _check_depth(depth: Tensor, disparity: Tensor, expected: dict[str, Any], limit: float) -> None:
    """The disparity before the last ReLU and behind it, and the depth, where nearly constant ones are given."""
    check_statistics(disparity, expected["output"], limit)
    torch.testing.assert_close(depth, 1 / (0.000305 * disparity.relu() + 0.1378))
    for name, found in (("disparity_after_relu", disparity.relu()), ("depth_metres", depth)):
        if name in expected:
            wanted = expected[name]
            values = found.flatten()[wanted["sample_index"]]
            spread = limit * expected["output"]["std"] if name == "disparity_after_relu" else 1e-6
            torch.testing.assert_close(values, torch.tensor(wanted["sample_value"]), rtol=0, atol=spread)


@needs_data
@pytest.mark.parametrize(("reference", "kind"), _fills())
@torch.no_grad()
def test_same_function_of_the_weights(reference: Reference, kind: str):
    _skip_unless(reference, "golden")
    if reason := too_large(reference):
        pytest.skip(reason)
    model, sums = fill(reference.build(), reference, kind)
    expected, x, limit = reference.fill(kind), draw_input(reference.golden["input"]), reference.limit(kind)
    if kind == "normal":
        _check_fill(model, sums, reference.golden["fill_check"])
        _check_input(x, reference.golden["input"])
    with probed(model, expected["probes"]) as seen:
        out = model(x)
    for probe, statistics in expected["probes"].items():
        check_statistics(seen[probe], statistics, limit)
    if isinstance(model, DPT):
        return _check_depth(out, seen["scratch.output_conv.4"].squeeze(1), expected, limit)
    _check_output(out, expected["output"], limit)
    if "low_resolution_masks" in expected:
        check_statistics(seen["decoder"], expected["low_resolution_masks"])
    _check_more_inputs(model, expected)


def test_official_mae_files():
    model = mae_vit(num_classes=3, img_size=28, patch_size=14, embed_dim=16, depth=1, num_heads=2)
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    model.load_state_dict(from_official({"model": state, "epoch": 49}))
    with pytest.raises(ValueError, match="pre-trained MAE"):
        from_official({"model": {"mask_token": torch.zeros(1), **state}})
    with pytest.raises(ValueError, match="reads the class token"):
        from_official({"head.weight": torch.zeros(3, 16), "norm.weight": torch.zeros(16)})


def test_divided_branches():
    x = torch.randn(5)
    assert torch.equal(Divide(3.0)(x), x / 3.0)
