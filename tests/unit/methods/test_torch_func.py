"""Under torch.func and without values: per-sample gradients of every method, and every method on the meta device."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call, grad, jvp, vmap
from torch.fx import symbolic_trace
from torch.fx.experimental.proxy_tensor import make_fx

import ttf
from tests.methods_under_test import CASES, MethodCase
from ttf.methods import LayerView, TokenTransform
from ttf.ops.attention import summed_attention
from ttf.ops.numerics import can_inspect, has_values, require_finite

# tokens are counted by their values
COUNTED = [c for c in CASES if getattr(c.method, "outliers", False) or getattr(c.method, "threshold", None) == -1.0]
others = pytest.mark.parametrize("case", [c for c in CASES if c not in COUNTED], ids=lambda case: case.name)
counted = pytest.mark.parametrize("case", COUNTED, ids=lambda case: case.name)


def _compressed(case: MethodCase, tiny: Any, images: Tensor) -> VisionTransformer:
    model = tiny(depth=3)
    return ttf.apply(model, method=case.for_model(model, images, (1,)), ratio=0.5, blocks=(1,))


def _per_sample(model: VisionTransformer, images: Tensor) -> dict[str, Tensor]:
    parameters = {name: value.detach() for name, value in model.named_parameters()}

    def loss(values: dict[str, Tensor], image: Tensor) -> Tensor:
        return functional_call(model, values, (image.unsqueeze(0),)).square().sum()

    return vmap(grad(loss), (None, 0))(parameters, images)


@others
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_per_sample_gradients_are_those_of_a_loop(case: MethodCase, tiny: Any, images: Any) -> None:
    x = images(3)
    model = _compressed(case, tiny, x)
    together = _per_sample(model, x)
    for image in range(len(x)):
        model.zero_grad()
        model(x[image : image + 1]).square().sum().backward()
        for name, parameter in model.named_parameters():
            alone = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            torch.testing.assert_close(together[name][image], alone, atol=1e-4, rtol=1e-4, msg=name)


@others
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_inference_under_vmap_is_that_of_a_loop(case: MethodCase, tiny: Any, images: Any) -> None:
    x = images(3)
    model = _compressed(case, tiny, x).requires_grad_(False)
    together = vmap(lambda image: model(image.unsqueeze(0)).squeeze(0))(x)
    alone = torch.cat([model(image.unsqueeze(0)) for image in x])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


@others
@pytest.mark.parametrize("recover", [False, True, "transpose"])
def test_every_method_runs_on_the_meta_device(case: MethodCase, recover: Any, tiny: Any, images: Any) -> None:
    x = images(2)
    model = _compressed(case, tiny, x)
    assert copy.deepcopy(model).to("meta")(x.to("meta")).shape == (2, 10)
    if case.method is not None:
        dense = ttf.apply(model, method=case.method, ratio=0.5, blocks=(1,), recover=recover).to("meta")
        tokens = dense.forward_features(x.to("meta"))
        assert tokens.device.type == "meta" and (tokens.shape == (2, 65, 48) or not recover)


@counted
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_methods_that_count_values_say_so(case: MethodCase, tiny: Any, images: Any) -> None:
    x = images(2)
    model = _compressed(case, tiny, x)
    with pytest.raises(ValueError, match="counts tokens by their values"):
        _per_sample(model, x)
    with pytest.raises(ValueError, match="counts tokens by their values"):
        model.to("meta")(x.to("meta"))


def test_tangents_of_a_layer_are_those_of_its_gradient() -> None:
    """Forward-mode derivatives; those of a whole model torch's fused attention does not have on a CPU."""
    x, step, scores, method = torch.randn(1, 20, 6) + 0.5, torch.randn(1, 20, 6), torch.rand(1, 20), TokenTransform()

    def run(x: Tensor) -> Tensor:
        out, sums = summed_attention(*x.view(1, 20, 3, 1, 2).permute(2, 0, 3, 1, 4), None, 0.5)
        return method(LayerView(x, 1, scores=scores), 9)[0].sum() + out.square().sum() + sums.square().sum()

    _, tangent = jvp(run, (x,), (step,))
    torch.testing.assert_close(tangent, (grad(run)(x) * step).sum(), atol=1e-4, rtol=1e-4)


def test_values_can_be_looked_at_where_there_are_some() -> None:
    seen: list[bool] = []

    def look(x: Tensor) -> Tensor:
        require_finite(x, "the tokens")
        seen.append(can_inspect(x) or has_values(x))
        return x.sum()

    x = torch.ones(2, 3)
    assert can_inspect(x) and can_inspect(torch.nn.Parameter(x))
    assert not can_inspect(x.to("meta")) and not has_values(x.to("meta"))
    vmap(look)(x)
    grad(look)(x)
    torch.jit.trace(look, x, check_trace=False)
    torch.compile(look, backend="eager", fullgraph=True)(x)
    for mode in ("real", "fake"):
        make_fx(look, tracing_mode=mode)(x)
    symbolic_trace(look)
    with FakeTensorMode() as mode:
        look(mode.from_tensor(x))
    assert seen and not any(seen)


def test_the_method_alone_takes_a_batch_of_layers() -> None:
    """Transformed tokens under vmap, without a gradient: what the loop gives."""
    x, scores, method = torch.randn(4, 1, 20, 6) + 0.5, torch.rand(4, 1, 20), TokenTransform()

    def run(x: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        y, reduction = method(LayerView(x, 1, scores=scores), 9)
        return y, reduction.matrix()

    y, matrices = vmap(run)(x, scores)
    for i in range(4):
        alone = run(x[i], scores[i])
        torch.testing.assert_close((y[i], matrices[i]), alone, atol=1e-4, rtol=1e-5)
