"""Every method on every kind of host: it compresses, it goes without a trace, and dense tokens come back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import ttf
from tests.methods_under_test import CASES, MethodCase

HOSTS: dict[str, dict[str, Any]] = {
    "class token": {},
    "distilled": {},
    "registers": {"reg_tokens": 4},
    "average": {"global_pool": "avg", "fc_norm": True},
    "no class token": {"class_token": False, "global_pool": "avg"},
}
BLOCKS = (3, 6, 9)

Tiny = Callable[..., VisionTransformer]
Images = Callable[..., Tensor]
Host = Callable[[str], Any]


@pytest.fixture
def host(tiny: Tiny, stir: Callable[[nn.Module], nn.Module]) -> Host:
    def make(name: str) -> nn.Module:
        if name != "distilled":
            return tiny(**HOSTS[name])
        size = {"img_size": 32, "patch_size": 4, "embed_dim": 48, "num_heads": 3, "num_classes": 10}
        return stir(timm.create_model("deit_tiny_distilled_patch16_224", **size))

    return make


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("name", HOSTS)
def test_method_on_host(name: str, case: MethodCase, host: Host, images: Images) -> None:
    model, x = host(name), images()
    if case.method is not None and case.method.wanted.needs_class_token and name == "no class token":
        with pytest.raises(ValueError, match="needs a class token, and this model has none"):
            ttf.apply(model, case.method)
        return
    before, dense = model(x), model.forward_features(x)
    ttf.apply(model, case.for_model(model, x, BLOCKS), ratio=0.7, blocks=BLOCKS)
    out, layers = model(x), ttf.trace(model, x)
    assert out.shape == before.shape and bool(torch.isfinite(out).all())
    assert not torch.equal(out, before)
    reducing = tuple(layer.block for layer in layers)
    # a method with a number of tokens of its own may leave too few for the next reduction
    assert reducing and reducing == (BLOCKS[: len(reducing)] if case.extra is None else BLOCKS)
    assert all(layer.W.shape[1] < layer.W.shape[2] for layer in layers)
    ttf.remove(model)
    assert torch.equal(model(x), before)
    for recover in ("nearest", "transpose"):
        ttf.apply(model, case.for_model(model, x, BLOCKS), ratio=0.7, blocks=BLOCKS, recover=recover)
        features = model.forward_features(x)
        assert features.shape == dense.shape and bool(torch.isfinite(features).all())
        ttf.remove(model)
