"""Swin: tokens that keep their places in windows, pseudo-windows, and what cannot be compressed there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import ttf
from tests.hosts.windows import all_at_their_places
from ttf.methods.top_k import TopK
from ttf.models.detector import swin_mini
from ttf.models.swin import SwinTransformer, from_mmdet
from ttf.ops.window_map import Map

SIZES = [(7, (150, 201)), (7, (112, 224)), (7, (60, 70)), (12, (250, 190)), (4, (128, 128))]
WAYS: list[dict[str, Any]] = [
    {"ratio": 0.7},
    {"ratio": 0.7, "blocks": [2, 5, 6]},
    {"ratio": 0.6, "shift": "none", "preset": "paper"},
    {"ratio": 0.6, "windows": "grid", "blocks": [2, 4]},
    {"ratio": 0.5, "reduce_after": "block", "blocks": [3], "recover": "transpose"},
    {"ratio": 0.5, "method": "hourglass", "windows": "grid", "reduce_after": "block", "recover": "transpose"},
    {"ratio": 0.5, "method": "uniform_pool", "windows": "grid"},
    {"ratio": 0.5, "method": "top_k"},
]


def _swin(window: int = 7) -> SwinTransformer:
    torch.manual_seed(window)
    model = SwinTransformer(16, (1, 1, 6, 1), (1, 2, 2, 4), window).eval()
    for parameter in model.parameters():
        parameter.data += 0.06 * torch.randn_like(parameter)
    return model


def _images(size: tuple[int, int], batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("window", "size"), SIZES)
@torch.no_grad()
def test_with_all_tokens_at_their_places_it_is_the_model(window: int, size: tuple[int, int]):
    model, images = _swin(window), _images(size)
    expected = model(images)
    with all_at_their_places(model, window):
        found = model(images)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).abs().max() < 2e-5 * theirs.std()


@pytest.mark.parametrize("way", WAYS, ids=lambda way: "-".join(str(v) for v in way.values()))
@torch.no_grad()
def test_a_compressed_model(way: dict[str, Any]):
    model, images = _swin(), _images((150, 201))
    expected, state = model(images), model.state_dict()
    before = ttf.measure.gmacs(model, (3, 150, 201))
    ttf.apply(model, **way)
    found, layers = model(images), ttf.trace(model, images)
    assert [map.shape for map in found] == [map.shape for map in expected]
    assert all(torch.equal(a, b) for a, b in zip(found[:2], expected[:2], strict=True))  # stages before it
    assert not torch.allclose(found[2], expected[2]) and all(torch.isfinite(map).all() for map in found)
    assert [layer.block for layer in layers] == way.get("blocks", [2])
    assert ttf.measure.gmacs(model, (3, 150, 201)) < before
    alone = torch.cat([model(image.unsqueeze(0))[2] for image in images])
    torch.testing.assert_close(alone, found[2], rtol=1e-4, atol=1e-4)
    ttf.remove(model)
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(a, b) for a, b in zip(model(images), expected, strict=True))


@torch.no_grad()
def test_w_of_windows_is_made_of_blocks():
    model, images = _swin(), _images((112, 224))  # a map of 7 x 14, two windows
    (layer,) = ttf.trace(ttf.apply(model, ratio=0.5), images)
    rows, columns = torch.arange(98) // 14, torch.arange(98) % 14
    window = columns // 7
    assert layer.W.shape == (2, 48, 98)
    torch.testing.assert_close(layer.W.sum(-1), torch.ones(2, 48))
    torch.testing.assert_close(layer.sizes.sum(-1), torch.full((2,), 98.0))
    own = window[layer.kept]  # the window of each informative token
    assert (layer.W * (window.view(1, 1, -1) != own.unsqueeze(-1))).abs().max() == 0
    assert own.sum(1).tolist() == [24, 24] and int(rows.max()) == 6


@torch.no_grad()
def test_selected_tokens_are_attended_to_as_they_are():
    """Attention among chosen tokens equals the model's own attention with everybody else masked out."""
    model, images = _swin(), _images((112, 224), batch=1)
    stage: Any = model.layers[2]
    seen: list[Any] = []
    ttf.apply(model, TopK(), ratio=0.4)
    handle = stage.blocks[1].attn.register_forward_hook(
        lambda module, args, kwargs, out: seen.append((args[0], out)), with_kwargs=True
    )
    (layer,) = ttf.trace(model, images)
    model(images)
    handle.remove()
    ttf.remove(model)
    tokens, answer = seen[-1][0], seen[-1][1].x
    block, kept = stage.blocks[1], layer.kept[0]
    dense = torch.zeros(1, 98, tokens.shape[2])
    dense[0, kept] = tokens[0]
    absent = torch.ones(98, dtype=torch.bool)
    absent[kept] = False
    expected = _masked_attention(block, dense, absent)
    torch.testing.assert_close(answer[0], expected[0, kept], rtol=1e-4, atol=1e-5)


def _masked_attention(block: Any, x: Tensor, absent: Tensor) -> Tensor:
    """The shifted attention of a block on a map of 7 x 14 that needs no filling, without the keys of ``absent``."""
    from ttf.models.swin import partition, shift_mask, unpartition

    rolled = x.unflatten(1, (7, 14)).roll((-3, -3), (1, 2))
    mask = shift_mask((7, 14), 7, 3, x).unsqueeze(1)
    gone = partition(absent.view(1, 7, 14, 1).float().roll((-3, -3), (1, 2)), 7).squeeze(-1) > 0
    attn = block.attn
    q, k, v = attn.qkv(partition(rolled, 7)).unflatten(2, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
    bias = attn.relative_position_bias_table[attn.relative_position_index].permute(2, 0, 1)
    logits = (q @ k.transpose(-1, -2)) * attn.scale + bias + mask
    out = logits.masked_fill(gone[:, None, None, :], -torch.inf).softmax(-1) @ v
    out = attn.proj(out.transpose(1, 2).flatten(2))
    return unpartition(out, 7, (7, 14)).roll((3, 3), (1, 2)).flatten(1, 2)


def test_windows_at_the_border_are_kinds_of_their_own():
    kinds = Map((15, 20), 7).kinds()
    assert [(len(kind.windows), kind.tokens) for kind in kinds] == [(4, 49), (2, 42), (2, 7), (1, 6)]
    places = torch.cat([part.flatten() for part in Map((15, 20), 7).sources(kinds, torch.zeros(0))])
    assert places.sort().values.tolist() == list(range(300))
    size, filling = Map((15, 20), 7).filling(7, torch.zeros(0))
    assert size == (21, 21) and len(filling) == 441 - 300


@pytest.mark.parametrize(
    ("way", "message"),
    [
        ({"method": "hourglass"}, "Hourglass makes tokens that have no place in the map: set windows=grid"),
        ({"method": "ats"}, "needs a class token"),
        ({"method": "tome_dense"}, "ToMeDense"),
        ({"windows": "squares"}, "windows must be one of places, grid, got 'squares'"),
        ({"shift": "half"}, "shift must be one of kept, none"),
        ({"blocks": [1]}, "stay whole"),
        ({"recover_at": "masks"}, "leave recover_at out"),
    ],
)
def test_what_cannot_be(way: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        ttf.apply(_swin(), **way)


def test_models_without_windows_have_no_choice_of_them():
    model = torch.nn.Sequential()
    with pytest.raises(ValueError, match="not a supported host"):
        ttf.apply(model, windows="grid")
    from ttf.models.vit_mini import vit_mini

    with pytest.raises(ValueError, match="this model has no windows: leave windows out"):
        ttf.apply(vit_mini(), windows="grid")


def test_a_detector_on_a_swin_trains_compressed():
    model = ttf.apply(swin_mini(), ratio=0.6)
    maps = model.train()(_images((96, 128)))
    assert maps.classes.shape == (2, 3, 12, 16)
    (maps.classes.mean() + maps.distances.mean()).backward()
    assert all(
        p.grad is not None and torch.isfinite(p.grad).all() for n, p in model.named_parameters() if "backbone" in n
    )


def test_names_of_mmdet_come_with_another_order_of_merged_channels():
    merged = torch.arange(2 * 8).float().view(2, 8)
    found = from_mmdet(
        {"stages.0.downsample.reduction.weight": merged, "stages.0.blocks.0.ffn.layers.1.bias": merged[0]}
    )
    assert set(found) == {"layers.0.downsample.reduction.weight", "layers.0.blocks.0.mlp.fc2.bias"}
    assert found["layers.0.downsample.reduction.weight"][0].tolist() == [0, 4, 2, 6, 1, 5, 3, 7]
