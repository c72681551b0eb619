"""``ttf::summed_attention`` and ``ttf::transform`` as torch's own operators: schemas, shapes, gradients, graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import ttf
from tests.unit.ops.operator_calls import BROKEN, CALLS, heads, layer
from ttf.methods import LayerView, TokenTransform
from ttf.ops import attention, backend, native

ATTENTION, TRANSFORM = torch.ops.ttf.summed_attention.default, torch.ops.ttf.transform.default
BACKENDS = ["auto", "plain"] if native.loaded() else ["plain"]
compiled = pytest.mark.skipif(not native.loaded(), reason="not compiled: python -m ttf.ops.native")


@pytest.fixture(params=BACKENDS)
def _each(request: pytest.FixtureRequest) -> Iterator[None]:
    with backend(request.param):
        yield


@pytest.mark.usefixtures("_each")
@pytest.mark.parametrize(("dtype", "learning"), [(torch.float32, True), (torch.bfloat16, False)])
def test_torch_finds_nothing_wrong(dtype: torch.dtype, learning: bool) -> None:
    q, k, v = (part.detach().requires_grad_(learning) for part in heads(dtype=dtype))
    bias = torch.rand(2, 1, 1, 17).to(dtype).requires_grad_(learning)
    torch.library.opcheck(ATTENTION, (q, k, v, None, 0.3, 1))
    torch.library.opcheck(ATTENTION, (q, k, v, bias, 0.3, 0))
    torch.library.opcheck(torch.ops.ttf.attention.default, (q, k, v, bias, 0.3))
    x, features, scores, mass = (part.detach().clone().requires_grad_(learning) for part in layer(dtype=dtype))
    torch.library.opcheck(TRANSFORM, (x, features, scores, None, 9, 1, 0.5, 30.0, False, True))
    torch.library.opcheck(TRANSFORM, (x, features, scores, mass, 9, 1, 0.5, 30.0, True, False))


@pytest.mark.usefixtures("_each")
def test_gradients_of_the_attention_are_those_of_the_whole_map() -> None:
    q, k, v, bias = leaves = [part.detach().requires_grad_() for part in (*heads(), torch.rand(2, 1, 1, 17))]
    weights = torch.randn(2, 3, 17, 8), torch.randn(2, 17)
    found = []
    for run in (torch.ops.ttf.summed_attention, attention.summed_whole):
        out, sums = run(q, k, v, bias, 0.3, 1)
        loss = (out * weights[0]).sum() + (sums * weights[1]).sum()
        found.append(torch.autograd.grad(loss, leaves))
    torch.testing.assert_close(*found)


def test_attention_with_a_number_per_key_is_attention_with_a_mask() -> None:
    q, k, v, bias = leaves = [part.detach().requires_grad_() for part in (*heads(), torch.rand(2, 1, 1, 17))]
    weights, found = torch.randn(2, 3, 17, 8), []
    for run in (torch.ops.ttf.attention, attention.fused_attention):
        out = run(q, k, v, bias, 0.3)
        found.append([out, *torch.autograd.grad((out * weights).sum(), leaves)])
    torch.testing.assert_close(*found)
    with pytest.raises(ValueError, match=r"the bias must have the shape \(2, 1, 1, 17\)"):
        torch.ops.ttf.attention(q, k, v, bias[..., :-1], 0.3)


@pytest.mark.usefixtures("_each")
@pytest.mark.parametrize("options", [{}, {"gate": "mask", "selection": "informative"}, {"isolate": False}])
def test_gradients_of_the_transform_are_those_of_the_plain_operators(options: dict[str, Any]) -> None:
    method = TokenTransform(tau=5.0, **options)
    isolated = int(method.isolate)
    x, _, scores, mass = (part.detach().requires_grad_() for part in layer(isolated=isolated))
    sizes = torch.cat((torch.ones(2, isolated), mass), dim=1)
    y, reduction = method(LayerView(x, 1, sizes=sizes, scores=scores), 9)
    weights, others = torch.randn_like(y), torch.randn_like(reduction.sizes)
    plain = torch.autograd.grad((y * weights).sum() + (reduction.sizes * others).sum(), (x, mass))
    redundancy = method.selection == "redundancy"
    out, summed, _ = torch.ops.ttf.transform(
        x, x[:, isolated:], scores, mass, 9, 1, 0.5, 5.0, method.gate == "mask", redundancy
    )
    ours = torch.autograd.grad((out * weights).sum() + (summed * others).sum(), (x, mass))
    torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-4)


@pytest.mark.usefixtures("_each")
@pytest.mark.parametrize(("name", "case"), CALLS)
def test_a_malformed_call_raises_in_one_line(name: str, case: str) -> None:
    arguments = BROKEN[name]()[case]
    with pytest.raises(ValueError, match="must") as caught:
        getattr(torch.ops.ttf, name)(*arguments)
    assert "\n" not in str(caught.value)


@compiled
@pytest.mark.parametrize(("name", "case"), CALLS)
def test_the_compiled_operators_check_it_themselves(name: str, case: str) -> None:
    first, *rest = BROKEN[name]()[case]
    if name == "summed_attention" and rest[2] is not None:
        rest[2] = rest[2].flatten(1)
    with pytest.raises(RuntimeError, match="must"):
        getattr(torch.ops.ttf, f"native_{name}")(first, *rest)


@compiled
@pytest.mark.parametrize("broken", ["double", "half", "to_sparse", "freed", "no channels", "elsewhere"])
def test_the_compiled_operators_take_what_they_can_read(broken: str) -> None:
    def spoilt(tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        if broken == "freed":
            tensor.untyped_storage().resize_(0)
            return tensor
        if broken == "elsewhere":
            return tensor.to("meta")
        return tensor[..., :0] if broken == "no channels" else getattr(tensor, broken)()

    x, features, scores, mass = layer()
    tail = (9, 1, 0.5, 30.0, False, True)
    calls: list[tuple[Callable[..., Any], tuple[Any, ...]]] = [
        (torch.ops.ttf.native_summed_attention, (*map(spoilt, heads()), None, 0.3, 0)),
        (torch.ops.ttf.native_transform, (spoilt(x), features, scores, mass, *tail)),
        (torch.ops.ttf.native_transform, (x, spoilt(features), scores, mass, *tail)),
    ]
    if broken != "no channels":
        calls.append((torch.ops.ttf.native_transform, (x, features, spoilt(scores), mass, *tail)))
        calls.append((torch.ops.ttf.native_transform, (x, features, scores, spoilt(mass), *tail)))
    for call, arguments in calls:
        with pytest.raises((RuntimeError, NotImplementedError)):
            call(*arguments)


@compiled
@pytest.mark.parametrize(("kappa", "tau"), [(float("nan"), 30.0), (0.5, float("inf")), (0.5, -1.0), (0.5, 1e300)])
def test_the_compiled_transform_refuses_other_numbers(kappa: float, tau: float) -> None:
    x, features, scores, _ = layer()
    with pytest.raises(RuntimeError, match="kappa must be finite and tau positive and finite"):
        torch.ops.ttf.native_transform(x, features, scores, None, 9, 1, kappa, tau, False, True)


@pytest.mark.usefixtures("_each")
@pytest.mark.parametrize("tokens", [0, 1, 2])
@pytest.mark.parametrize("batch", [0, 1])
def test_empty_batches_and_short_sequences(batch: int, tokens: int) -> None:
    q, k, v = heads(tokens, batch)
    out, sums = torch.ops.ttf.summed_attention(q, k, v, torch.zeros(batch, 1, 1, tokens), 0.3, 0)
    assert out.shape == q.shape and sums.shape == (batch, tokens)
    torch.testing.assert_close(sums.sum(1), torch.full((batch,), float(tokens)))
    if tokens:
        x, features, scores, _ = layer(tokens, batch, isolated=0)
        y, sizes, index = torch.ops.ttf.transform(x, features, scores, None, tokens, 0, 0.5, 30.0, False, True)
        assert (y.shape, sizes.shape, index.shape) == (x.shape, (batch, tokens), (batch, tokens))


@pytest.mark.usefixtures("_each")
@pytest.mark.parametrize("redundancy", [False, True])
def test_scores_that_are_no_numbers_rank_first_as_in_topk(redundancy: bool) -> None:
    x, features, scores, _ = layer(isolated=0)
    scores[0, [3, 8, 9, 12]] = float("nan")
    _, _, index = torch.ops.ttf.transform(x, features, scores, None, 6, 0, 0.5, 30.0, False, redundancy)
    assert {3, 8, 9, 12} <= set(index[0].tolist())
    assert index[0].tolist() == sorted(set(index[0].tolist()))


@pytest.mark.usefixtures("_each")
def test_rows_may_lie_anywhere_in_memory() -> None:
    """Expanded, reversed by strides, single rows of any stride: as if they were contiguous."""
    q, k, v = heads()
    one = (q[:, :, :1].as_strided((2, 3, 1, 8), (*q.stride()[:2], 0, 1)), k[:, :, :1], v[:, :, :1])
    views = [(q, k[:1].expand(2, -1, -1, -1), v), (q, k[:, :, :1].expand(-1, -1, 17, -1), v), one]
    views.append(tuple(part.transpose(2, 3).contiguous().transpose(2, 3) for part in (q, k, v)))
    for parts in views:
        got = torch.ops.ttf.summed_attention(*parts, None, 0.3, 0)
        expected = torch.ops.ttf.summed_attention(*(part.contiguous() for part in parts), None, 0.3, 0)
        torch.testing.assert_close(got, expected)
    x, features, scores, mass = layer()
    wide = torch.randn(2, 17, 12)[..., ::2].copy_(x)
    shared = (x[:1].expand(2, -1, -1), features[:1].expand(2, -1, -1), scores[:1].expand(2, -1), mass[:1].expand(2, -1))
    for parts in ((wide, wide[:, 1:], scores.t().contiguous().t(), mass), shared):
        got = torch.ops.ttf.transform(*parts, 9, 1, 0.5, 30.0, False, True)
        expected = torch.ops.ttf.transform(*(p.contiguous() for p in parts), 9, 1, 0.5, 30.0, False, True)
        torch.testing.assert_close(got, expected)


def _model(**options: Any) -> VisionTransformer:
    model = VisionTransformer(img_size=32, patch_size=4, embed_dim=48, depth=2, num_heads=3, num_classes=10).eval()
    return ttf.apply(model, blocks=(0,), **options).requires_grad_(False)


def _names(graph: torch.fx.Graph) -> set[str]:
    return {str(node.target) for node in graph.nodes if node.op == "call_function"}


def _compiled_names(model: VisionTransformer, images: Tensor, **options: Any) -> tuple[set[str], Tensor]:
    names: set[str] = set()

    def look(module: torch.fx.GraphModule, _: Any) -> Any:
        names.update(_names(module.graph))
        return module.forward

    torch.compiler.reset()
    answer = torch.compile(model, fullgraph=True, backend=look, **options)(images)
    torch.compiler.reset()
    return names, answer


@compiled
def test_compiled_code_calls_the_operators_and_follows_the_switch() -> None:
    model, images = _model(), torch.randn(2, 3, 32, 32)
    names, answer = _compiled_names(model, images)
    assert {"ttf.summed_attention", "ttf.transform"} <= names
    torch.testing.assert_close(answer, model(images), atol=1e-5, rtol=1e-5)
    with backend("plain"):
        names, answer = _compiled_names(model, images)
        assert not any(name.startswith("ttf") for name in names)
        torch.testing.assert_close(answer, model(images), atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("_each")
def test_compiled_code_takes_any_batch() -> None:
    model = _model()
    torch.compiler.reset()
    graph = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for batch in (2, 5):
            images = torch.randn(batch, 3, 32, 32)
            torch.testing.assert_close(graph(images), model(images), atol=1e-5, rtol=1e-5)
    torch.compiler.reset()


@pytest.mark.parametrize("strict", [False, True])
def test_exported_programs_hold_torchs_operators_alone(strict: bool) -> None:
    program = torch.export.export(_model(), (torch.randn(2, 3, 32, 32),), strict=strict)
    assert not any(name.startswith("ttf") for name in _names(program.graph))


@pytest.mark.filterwarnings("ignore")
def test_traced_graphs_hold_torchs_operators_alone() -> None:
    model, images = _model(), torch.randn(2, 3, 32, 32)
    for mode in ("real", "fake", "symbolic"):
        graph = make_fx(model, tracing_mode=mode, _allow_non_fake_inputs=True)(images).graph
        assert not any(name.startswith("ttf") for name in _names(graph))
    traced = torch.jit.trace(model, images, check_trace=False)
    assert "ttf::" not in str(traced.inlined_graph)
    torch.testing.assert_close(traced(images), model(images), atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("_each")
def test_shapes_without_values() -> None:
    with FakeTensorMode() as mode:
        q, k, v = map(mode.from_tensor, heads())
        out, sums = torch.ops.ttf.summed_attention(q, k, v, None, 0.3, 0)
        y, sizes, index = torch.ops.ttf.transform(*map(mode.from_tensor, layer()), 9, 1, 0.5, 30.0, False, True)
    assert out.shape == q.shape and out.transpose(1, 2).is_contiguous() and sums.shape == (2, 17)
    assert (y.shape, sizes.shape, index.shape) == ((2, 9, 6), (2, 9), (2, 8))
    assert (sizes.dtype, index.dtype) == (torch.float32, torch.int64)
    meta = torch.ops.ttf.transform(*(part.to("meta") for part in layer()), 9, 1, 0.5, 30.0, False, True)
    assert [part.shape for part in meta] == [y.shape, sizes.shape, index.shape]
