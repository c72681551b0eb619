"""Multiply-accumulates against the paper's figures and against formulas."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import ttf

WIDTH, DEPTH, PATCHES, TOKENS, MLP, CLASSES = 48, 12, 64, 65, 4, 10
STEM, HEAD = PATCHES * WIDTH * 3 * 4 * 4, WIDTH * CLASSES


@pytest.fixture(scope="module")
def deit_small() -> nn.Module:
    return timm.create_model("deit_small_patch16_224")


@pytest.mark.parametrize(("ratio", "paper"), [(1.0, 4.6), (0.7, 3.0), (0.6, 2.6)])
def test_deit_small_costs_what_the_paper_says(deit_small: nn.Module, ratio: float, paper: float) -> None:
    with ttf.applied(deit_small, ratio=ratio):
        assert round(ttf.measure.gmacs(deit_small, (3, 224, 224)), 1) == paper


def _block(before: int, after: int) -> int:
    """Of one block: qkv, attention and projection on the tokens before, the feed-forward half on those after."""
    attention = before * WIDTH * 3 * WIDTH + 2 * before * before * WIDTH + before * WIDTH * WIDTH
    return attention + 2 * after * WIDTH * MLP * WIDTH


def test_uncompressed_model_equals_the_formula(tiny: Callable[..., VisionTransformer]) -> None:
    expected = STEM + DEPTH * _block(TOKENS, TOKENS) + HEAD
    assert ttf.measure.gmacs(tiny(), (3, 32, 32)) * 1e9 == pytest.approx(expected, rel=1e-12)


def test_cost_of_the_transform_is_counted(tiny: Callable[..., VisionTransformer]) -> None:
    """One literal reduction from 65 to 33 tokens: similarity and W X, 2 M N C (Sec. 3)."""
    model = ttf.apply(tiny(), ratio=0.5, blocks=(5,), preset="paper")
    blocks = 5 * _block(TOKENS, TOKENS) + _block(TOKENS, 33) + 6 * _block(33, 33)
    expected = STEM + blocks + 2 * 33 * TOKENS * WIDTH + HEAD
    assert ttf.measure.gmacs(model, (3, 32, 32)) * 1e9 == pytest.approx(expected, rel=1e-12)


def test_a_batch_costs_as_many_times_more(tiny: Callable[..., VisionTransformer]) -> None:
    model = tiny()
    assert ttf.measure.gmacs(model, (3, 3, 32, 32)) == pytest.approx(3 * ttf.measure.gmacs(model, (3, 32, 32)))


@pytest.mark.parametrize("training", [True, False])
def test_modes_are_restored(tiny: Callable[..., VisionTransformer], training: bool) -> None:
    model = tiny().train(training)
    model.blocks[0].train(not training)
    seen: list[bool] = []
    model.blocks[0].register_forward_pre_hook(lambda block, _: seen.append(block.training))
    before = {name: module.training for name, module in model.named_modules()}
    ttf.measure.gmacs(model, (3, 32, 32))
    assert seen == [False]
    assert {name: module.training for name, module in model.named_modules()} == before


def test_modes_are_restored_after_a_failure(tiny: Callable[..., VisionTransformer]) -> None:
    model = tiny().train()
    with pytest.raises(AssertionError):
        ttf.measure.gmacs(model, (3, 40, 40))
    assert model.training


def test_counts_models_in_half_precision(tiny: Callable[..., VisionTransformer]) -> None:
    assert ttf.measure.gmacs(tiny().bfloat16(), (3, 32, 32)) == ttf.measure.gmacs(tiny(), (3, 32, 32))


def test_shape_without_channels_is_refused(tiny: Callable[..., VisionTransformer]) -> None:
    with pytest.raises(ValueError, match=r"\(3, H, W\)"):
        ttf.measure.gmacs(tiny(), (32, 32))


def test_parameters_in_millions() -> None:
    model = nn.Sequential(nn.Linear(1000, 1000), nn.Linear(1000, 10, bias=False))
    assert ttf.measure.params_m(model) == pytest.approx(1.011)


def test_gradients_are_not_recorded(tiny: Callable[..., VisionTransformer]) -> None:
    assert torch.is_grad_enabled()
    model = tiny()
    ttf.measure.gmacs(model, (3, 32, 32))
    assert torch.is_grad_enabled()
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("points", [5, 200])  # torch computes few and many by different operators
def test_distances_count_as_the_matrix_product_that_they_are(points: int) -> None:
    class Distances(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.points = nn.Parameter(torch.randn(points, 7))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.cdist(images.flatten(2), self.points.unsqueeze(0))

    assert ttf.measure.gmacs(Distances(), (3, 1, 7)) == pytest.approx(3 * points * 7 / 1e9)


def test_norms_as_fvcore_counts_them(tiny: Callable[..., VisionTransformer]) -> None:
    model, images = tiny(), torch.zeros(2, 3, 32, 32)
    assert ttf.measure.norm_gops(model, images) * 1e9 == pytest.approx(5 * 2 * TOKENS * WIDTH * (2 * DEPTH + 1))
    with ttf.applied(model, ratio=0.5):
        assert ttf.measure.norm_gops(model, images) * 1e9 < 5 * 2 * TOKENS * WIDTH * (2 * DEPTH + 1)
