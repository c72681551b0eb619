"""Other ways to run a compressed model: compiled in place, traced, copied, offloaded, checkpointed, as a twin."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

import ttf

Tiny = Callable[..., VisionTransformer]
Images = Callable[..., Tensor]
SOFT: dict[str, Any] = {"ratio": 0.5, "tau": 10.0}  # 150 would multiply the rounding of other ways to compute


@pytest.mark.parametrize("first", ["compile", "apply"])
def test_models_and_blocks_compiled_in_place(first: str, tiny: Tiny, images: Images) -> None:
    plain, x = tiny(depth=6), images()
    expected = ttf.apply(copy.deepcopy(plain), **SOFT)(x)
    for parts in (lambda model: [model], lambda model: list(model.blocks)):
        torch.compiler.reset()
        model = copy.deepcopy(plain)
        if first == "apply":
            ttf.apply(model, **SOFT)
        for part in parts(model):
            part.compile(backend="eager")
        model(x)
        with torch.no_grad():
            torch.testing.assert_close(ttf.apply(model, **SOFT)(x), expected, atol=1e-5, rtol=1e-5)
            assert len(ttf.trace(model, x)) == 3
            twin = ttf.remove(ttf.twin(model))
            assert torch.equal(twin(x), plain(x))


def test_forwards_set_on_the_instance(tiny: Tiny, images: Images) -> None:
    model, x = tiny(), images()
    before = model(x)
    model.forward = torch.compile(model.forward, backend="eager")  # type: ignore[method-assign]
    assert len(ttf.trace(ttf.apply(model, **SOFT), x)) == 3
    assert torch.equal(ttf.remove(ttf.twin(model))(x), before)
    model = tiny()
    model.blocks[4].forward = model.blocks[4].forward  # what libraries leave behind
    assert len(ttf.trace(ttf.apply(model, **SOFT), x)) == 3
    ttf.remove(model)
    model.blocks[4].forward = lambda x: x
    with pytest.raises(ValueError, match=r"blocks\.4 has a forward of its own on the instance"):
        ttf.apply(model)
    assert not any(layer for layer in model.modules() if hasattr(layer, "ttf_place"))


def test_moving_averages_and_copies(tiny: Tiny, images: Images) -> None:
    model, x = ttf.apply(tiny(), **SOFT), images()
    average = AveragedModel(model)
    average.update_parameters(model)
    torch.testing.assert_close(average.module(x), model(x))
    assert torch.equal(copy.deepcopy(model.blocks)(torch.zeros(1, 65, 48)).x, model.blocks(torch.zeros(1, 65, 48)).x)


def test_twins_stay_in_step(tiny: Tiny, images: Images) -> None:
    model, x = tiny(), images()
    twin = ttf.apply(ttf.twin(model), **SOFT)
    before = twin(x)
    with torch.no_grad():
        model.blocks[0].mlp.fc1.weight.zero_()
    assert not torch.equal(twin(x), before)
    model.double()
    assert twin(x.double()).dtype == torch.float64
    assert ttf.plan(model) is None and ttf.plan(twin) is not None


def test_offloading(tiny: Tiny, images: Images) -> None:
    accelerate, x = pytest.importorskip("accelerate"), images()
    model = ttf.apply(tiny(), **SOFT)
    expected = model(x)
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    torch.testing.assert_close(model(x), expected)
    for late in (lambda: ttf.trace(model, x), lambda: ttf.twin(model)):
        with pytest.raises(ValueError, match="forward of its own on the instance"):
            late()
    other = tiny()
    accelerate.cpu_offload(other, execution_device=torch.device("cpu"))
    with pytest.raises(ValueError, match=r"call ttf\.apply first"):
        ttf.apply(other)


def test_reentrant_checkpointing_says_what_to_do(tiny: Tiny, images: Images) -> None:
    model = ttf.apply(tiny(), **SOFT).train()
    x = model._pos_embed(model.patch_embed(images()))
    for block in model.blocks[:4]:
        x = checkpoint(block, x, use_reentrant=True)
    with pytest.raises(ValueError, match="use_reentrant=False"):
        checkpoint(model.blocks[4], x, use_reentrant=True)


def test_other_tracers(tiny: Tiny, images: Images) -> None:
    model, x = ttf.apply(tiny(), **SOFT).requires_grad_(False), images()
    torch.testing.assert_close(torch.jit.trace(model, (x,))(x), model(x), atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match=r"torch\.export"):
        torch.jit.script(model)
    blocks = nn.Sequential(*model.blocks)
    with pytest.raises(ValueError, match=r"torch\.fx .*torch\.export"):
        torch.fx.symbolic_trace(blocks)
    assert ttf.apply(tiny(), **SOFT).to("meta")(x.to("meta")).shape == (2, 10)
