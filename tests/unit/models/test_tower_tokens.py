"""Twins of a compressed tower are kept from one pass to the next, as long as they are what a new one would be."""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

import ttf
from ttf.core import entry

pytest.importorskip("transformers", reason="needs transformers: pip install 'ttf[hf]'")

from ttf.models import tower_tokens
from ttf.models.llava_mini import llava_mini

IMAGES = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    whole = llava_mini(width=32, depth=2).eval()
    ttf.apply(whole, ratio=0.5)
    return whole.model


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with every twin that is made."""
    twins, twin = list[int](), entry.twin

    def counted(*args: Any, **kwargs: Any) -> Any:
        twins.append(1)
        return twin(*args, **kwargs)

    monkeypatch.setattr(entry, "twin", counted)
    return twins


@torch.no_grad()
def _tokens(model: Any, images: Tensor = IMAGES) -> Tensor:
    return torch.stack(tower_tokens.selected(model, images))


def test_a_second_pass_makes_no_twin(model: Any, made: list[int]) -> None:
    first = _tokens(model)
    assert torch.equal(_tokens(model), first) and len(made) == 1
    other = _tokens(model, IMAGES.flip(0))
    assert torch.equal(other, _tokens(copy.deepcopy(model), IMAGES.flip(0))) and len(made) == 2


def _another_plan(model: Any) -> None:
    ttf.remove(model)
    ttf.apply(model, ratio=0.7)


def _another_layer(model: Any) -> None:
    layers = model.get_submodule(tower_tokens.TOWER).encoder.layers
    layers[0].mlp = copy.deepcopy(layers[0].mlp)
    layers[0].mlp.fc1.weight.data.mul_(2)


def _another_activation(model: Any) -> None:
    model.get_submodule(tower_tokens.TOWER).encoder.layers[0].mlp.activation_fn = torch.nn.ReLU()


def _a_hook(model: Any) -> None:
    layer = model.get_submodule(tower_tokens.TOWER).encoder.layers[0].mlp
    layer.register_forward_hook(lambda module, args, out: 2 * out)


@pytest.mark.parametrize("change", [_another_plan, _another_layer, _another_activation, _a_hook])
def test_a_changed_tower_has_another_twin(change: Callable[[Any], None], model: Any, made: list[int]) -> None:
    before = _tokens(model)
    change(model)
    after = _tokens(model)
    assert len(made) >= 2 and (after.shape != before.shape or not torch.allclose(after, before))
    assert torch.equal(after, _tokens(copy.deepcopy(model)))


def test_new_weights_and_dtypes_need_no_other_twin(model: Any, made: list[int]) -> None:
    before = _tokens(model)
    with torch.no_grad():
        model.get_submodule(tower_tokens.TOWER).encoder.layers[1].mlp.fc1.weight.mul_(2)
    after = _tokens(model)
    assert not torch.allclose(after, before) and torch.equal(after, _tokens(copy.deepcopy(model)))
    assert _tokens(model.to(torch.bfloat16)).dtype == torch.bfloat16


def test_threads_have_twins_of_their_own(model: Any) -> None:
    parts = [IMAGES.roll(shift, 3) for shift in range(6)]
    expected = [_tokens(model, part) for part in parts]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda part: _tokens(model, part), parts * 3))
    assert all(torch.equal(a, b) for a, b in zip(found, expected * 3, strict=True))
