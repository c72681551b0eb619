"""Where the time of a pass goes: everything is counted once, under its kind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

import ttf
from ttf import api
from ttf.bench import roofline
from ttf.methods import TokenTransform
from ttf.ops import backend

KNOWN = roofline.Rates(gmacs_per_s=100.0, gb_per_s=10.0)
SHAPE = (2, 3, 32, 32)


@pytest.mark.parametrize("name", ["auto", "plain"])
@pytest.mark.parametrize("method", ["token_transform", "dpc_knn"])  # torch's counter leaves out distances
def test_kinds_add_up_to_the_multiply_accumulates_of_the_model(method: str, name: Any) -> None:
    model = VisionTransformer(img_size=32, patch_size=4, embed_dim=48, depth=6, num_heads=3, num_classes=10).eval()
    ours = ttf.apply(api.twin(model), method, ratio=0.5, blocks=[2, 4])
    images = torch.randn(SHAPE)
    with backend(name):
        whole, parts = roofline.parts((model, ours), images, KNOWN, rounds=1)
    assert list(whole) == [roofline.PRODUCTS, roofline.ATTENTION, roofline.REST]
    without = roofline.SUMMED if method == "dpc_knn" else None  # it asks for no column sums
    assert list(parts) == [kind for kind in roofline.KINDS if kind != without]
    for measured, kinds in ((model, whole), (ours, parts)):
        counted = ttf.measure.gmacs(measured, SHAPE, images) / len(images)
        assert sum(part.gmacs for part in kinds.values()) == pytest.approx(counted, rel=1e-9)
        assert all(part.measured_ms > 0 and part.gb > 0 for part in kinds.values())


def test_a_roofline_time_is_the_dearer_of_arithmetic_and_memory() -> None:
    slow = roofline.Rates(gmacs_per_s=1e-3, gb_per_s=1e9)
    model, images = torch.nn.Linear(48, 48), torch.randn(4, 48)
    (kinds,) = roofline.parts((model,), images, slow, rounds=1)
    product = kinds[roofline.PRODUCTS]
    assert product.gmacs == pytest.approx(48 * 48 / 1e9)
    assert product.roofline_ms == pytest.approx(1e3 * product.gmacs / slow.gmacs_per_s, rel=1e-6)


def test_methods_run_outside_of_the_log_as_before() -> None:
    before, model = vars(TokenTransform)["__call__"], ttf.apply(VisionTransformer(img_size=32, patch_size=4).eval())
    plan = api.plan(model)
    roofline.parts((model,), torch.randn(SHAPE), KNOWN, rounds=1)
    assert vars(TokenTransform)["__call__"] is before
    assert api.plan(model) == plan and type(plan.method) is TokenTransform


def test_rates_are_positive() -> None:
    rates = roofline.rates(torch.device("cpu"), side=64, mib=1)
    assert rates.gmacs_per_s > 0 and rates.gb_per_s > 0
