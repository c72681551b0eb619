"""DPT as a host: a small plain one and a small hybrid for behaviour, DPT-Hybrid for what it costs."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from timm.layers.hybrid_embed import HybridEmbed
from timm.models.resnetv2 import ResNetV2
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import ttf
from tests.methods_under_test import CASES, MethodCase
from ttf.bench.counting import Shapes
from ttf.models.dpt import DPT, Bounded, Inverse, StandardizedConv
from ttf.models.weights import load_strictly

PLACES = ["taps", "reassembled"]
VIT: dict[str, Any] = {"embed_dim": 64, "depth": 12, "num_heads": 2, "num_classes": 0}
Images = Callable[..., Tensor]


def plain(**changes: Any) -> DPT:
    vit = VisionTransformer(img_size=64, patch_size=16, **VIT)
    options: dict[str, Any] = {"output": Bounded(), "widths": (8, 8, 16, 16), "features": 8, "img_size": (64, 64)}
    return DPT(vit, (2, 5, 8, 11), **{**options, **changes})


def hybrid() -> DPT:
    narrow: Any = {
        "layers": (1, 1, 1),
        "channels": (128, 256, 256),
        "stem_chs": 32,
        "num_classes": 0,
        "global_pool": "",
    }
    resnet = ResNetV2(**narrow, preact=False, stem_type="same", conv_layer=StandardizedConv)
    embed: Any = partial(HybridEmbed, backbone=resnet)
    vit = VisionTransformer(img_size=64, patch_size=1, embed_layer=embed, **VIT)
    return DPT(vit, (8, 11), widths=(128, 256, 16, 16), features=8, img_size=(64, 64))


@pytest.fixture(params=[plain, hybrid], ids=["plain", "hybrid"])
def model(request: pytest.FixtureRequest, stir: Callable[[nn.Module], nn.Module]) -> DPT:
    found = stir(request.param())
    assert isinstance(found, DPT)
    return found


@pytest.fixture
def x(images: Images) -> Tensor:
    return images(2, 128, 96)


@pytest.mark.parametrize("place", PLACES)
def test_ratio_one_changes_no_bit_and_no_key(place: str, model: DPT, x: Tensor):
    before, keys = model(x), list(model.state_dict())
    assert before.shape == (2, 128, 96) and bool((before > 0).all())
    ttf.apply(model, ratio=1.0, recover_at=place)
    assert torch.equal(model(x), before)
    assert list(model.state_dict()) == keys


@pytest.mark.parametrize("place", PLACES)
def test_remove_restores_every_bit(place: str, model: DPT, x: Tensor):
    before, cost = model(x), ttf.measure.gmacs(model, (3, 128, 96))
    ttf.apply(model, recover_at=place)
    assert not torch.equal(model(x), before)
    assert ttf.measure.gmacs(model, (3, 128, 96)) < cost
    assert torch.equal(ttf.remove(model)(x), before)
    assert type(model) is DPT


def test_the_default_blocks(model: DPT, x: Tensor):
    layers = ttf.trace(ttf.apply(model, ratio=0.5), x)
    assert [layer.block for layer in layers] == ([2] if model.hybrid else [4, 7, 10])
    assert {(layer.grid, layer.prefix) for layer in layers} == {((8, 6), 1)}


@pytest.mark.parametrize("method", ["token_transform", "evit", "top_k", "tome"])
def test_copies_of_the_nearest_token_may_come_back_later(method: str, model: DPT, x: Tensor):
    blocks, costs, found = [2, 6], [], []
    for place in PLACES:
        ttf.apply(model, method, ratio=0.5, blocks=blocks, recover_at=place)
        found.append(model(x))
        costs.append(ttf.measure.gmacs(model, (3, 128, 96)))
    torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=1e-4)
    assert costs[1] < costs[0]


def test_reconstructions_from_several_tokens_do_not_commute(model: DPT, x: Tensor):
    one, other = (
        ttf.apply(model, "hourglass", ratio=0.25, blocks=[2], recover="transpose", recover_at=place)(x)
        for place in PLACES
    )
    assert one.isfinite().all() and other.isfinite().all() and not torch.allclose(one, other, atol=1e-4)


def _maps(model: DPT, tokens: list[Tensor], x: Tensor) -> Tensor:
    """The depth of dense tokens behind the taps."""
    _, maps = model.embed(x)
    maps += [model.reassemble(model.first + i, one, model.grid(x.shape[-2:])) for i, one in enumerate(tokens)]
    return model.output(model.scratch(maps)).squeeze(1)


@pytest.mark.parametrize("recover", ["nearest", "transpose"])
def test_tokens_come_back_behind_the_taps(recover: str, model: DPT, x: Tensor):
    ttf.apply(model, "top_k", blocks=[6], recover=recover)
    out, matrix = model(x), ttf.trace(model, x)[0].W
    ttf.remove(model)
    tokens, _ = model.embed(x)
    taps, back = [], torch.eye(tokens.shape[1]).expand(2, -1, -1)
    for number, block in enumerate(model.vit.blocks):
        attended = tokens + block.attn(block.norm1(tokens))
        if number == 6:
            nearest = torch.cdist(attended[:, 1:], (matrix @ attended)[:, 1:]).argmin(-1)
            copies = torch.zeros_like(matrix[:, 1:, 1:]).scatter(1, nearest.unsqueeze(1), 1.0).transpose(1, 2)
            back = torch.zeros(2, tokens.shape[1], matrix.shape[1])
            back[:, 0, 0] = 1  # the class token is the short sequence's own
            back[:, 1:, 1:] = copies if recover == "nearest" else matrix[:, 1:, 1:].transpose(1, 2)
            attended = matrix @ attended
        tokens = attended + block.mlp(block.norm2(attended))
        if number in model.taps:
            taps.append(back @ tokens)
    torch.testing.assert_close(out, _maps(model, taps, x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_method(case: MethodCase, stir: Callable[[nn.Module], nn.Module], images: Images):
    model, x, blocks = stir(plain()), images(2, 64, 64), (4, 7, 10)
    before = model(x)
    ttf.apply(model, case.for_model(model, x, blocks), ratio=0.7, blocks=blocks, recover_at="reassembled")
    out = model(x)
    assert out.shape == before.shape and bool(out.isfinite().all()) and not torch.equal(out, before)
    assert torch.equal(ttf.remove(model)(x), before)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"])
def test_copies_are_whole(copied: Callable[[Any], Any], model: DPT, x: Tensor):
    before, compressed = model(x), ttf.apply(model)(x)
    twin = copied(model)
    assert torch.equal(twin(x), compressed)
    assert torch.equal(ttf.remove(twin)(x), before)


def test_wrong_uses_are_refused(model: DPT, images: Images):
    class Own(DPT):
        pass

    with pytest.raises(ValueError, match="recover_at must be one of taps, reassembled, got 'masks'"):
        ttf.apply(model, recover_at="masks")
    with pytest.raises(ValueError, match="multiples of 16, got 64x50"):
        model(images(1, 64, 50))
    vit = VisionTransformer(img_size=64, patch_size=16, **VIT)
    with pytest.raises(ValueError, match="Own is a subclass of DPT"):
        ttf.apply(Own(vit, (2, 5, 8, 11), widths=(8, 8, 8, 8), features=8))
    for taps in ((8, 11), (2, 5, 11, 8), (2, 5, 8, 12)):
        with pytest.raises(ValueError, match="taps must be 4 of the blocks 0 to 11 in order"):
            DPT(vit, taps)


def test_a_timm_vit_starts_the_backbone(tiny: Callable[..., nn.Module], images: Images):
    vit = tiny(img_size=64, patch_size=16, embed_dim=64, num_heads=2)
    model = plain().eval()
    load_strictly(model, model.with_encoder(vit.state_dict()), "vit")
    x, tokens = images(2, 64), []
    vit.blocks[-1].register_forward_hook(lambda _, __, out: tokens.append(out))
    model.vit.blocks[-1].register_forward_hook(lambda _, __, out: tokens.append(out))
    vit.eval()(x), model(x)
    torch.testing.assert_close(tokens[0], tokens[1], atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="no weights of a timm ViT"):
        model.with_encoder({"pos_embed": torch.zeros(1, 18, 64)})


def test_depths_of_both_outputs():
    x = torch.tensor([-5.0, 0.0, 1000.0])
    torch.testing.assert_close(Inverse()(x), torch.tensor([1 / 0.1378, 1 / 0.1378, 1 / 0.4428]))
    assert Inverse(scale=1.0, shift=0.0)(x[:1]).item() == pytest.approx(1e8)
    torch.testing.assert_close(Bounded(8.0)(torch.zeros(1)), torch.tensor([4.0]))


GMACS = [
    (None, 279.57),
    ({"ratio": 0.25, "blocks": [2], "preset": "paper"}, 200.14),
    ({"ratio": 0.25, "blocks": [2], "preset": "paper", "recover_at": "reassembled"}, 196.95),
    ({"ratio": 0.25, "blocks": [2]}, 200.97),
]


def test_multiply_accumulates_of_the_whole_network():
    shapes = Shapes(OmegaConf.create({"_target_": "ttf.models.dpt.dpt_hybrid"}))
    assert (shapes.size, shapes.patches) == ((3, 480, 640), 1200)
    for options, gmacs in GMACS:
        assert shapes.gmacs(options) == pytest.approx(gmacs, abs=0.01)


def test_the_small_model():
    shapes = Shapes(OmegaConf.create({"_target_": "ttf.models.dpt.dpt_ti"}))
    assert (shapes.size, shapes.patches) == ((3, 240, 320), 300)
    assert shapes.gmacs(None) == pytest.approx(3.05, abs=0.005)
