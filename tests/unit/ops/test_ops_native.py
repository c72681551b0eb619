"""The compiled operators against the plain ones in float64, at the contract of ``ttf.ops.native``."""

from __future__ import annotations

import weakref
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import ttf
from ttf.measure.provenance import operators_used
from ttf.methods import LayerView, TokenTransform
from ttf.ops import attention, backend, fused, native, plain, runner
from ttf.ops.fused import TransformReduction
from ttf.ops.reduction import DenseReduction, Reduction

pytestmark = pytest.mark.skipif(not native.loaded(), reason="not compiled: python -m ttf.ops.native")
Seeds = st.integers(0, 2**16)


def _heads(seed: int, batch: int, heads: int, tokens: int, dim: int, gain: float) -> tuple[Tensor, Tensor, Tensor]:
    """As a host has them: views of one projection."""
    generator = torch.Generator().manual_seed(seed)
    qkv = gain * torch.randn(batch, tokens, 3 * heads * dim, generator=generator)
    q, k, v = qkv.view(batch, tokens, 3, heads, dim).permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v


def _sizes(seed: int, batch: int, tokens: int) -> Tensor:
    return 1 + 4 * torch.rand(batch, tokens, generator=torch.Generator().manual_seed(seed))


@example(0, 2, 6, 197, 64, 2.0, True, 1)
@example(0, 1, 2, 1601, 64, 2.0, False, 0)  # several blocks of queries
@given(
    Seeds,
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 70),
    st.sampled_from([1, 3, 8, 17]),
    st.sampled_from([0.1, 1.0, 4.0]),
    st.booleans(),
    st.integers(0, 2),
)
def test_attention_and_column_sums_keep_the_contract(
    seed: int, batch: int, heads: int, tokens: int, dim: int, gain: float, biased: bool, first: int
) -> None:
    q, k, v = _heads(seed, batch, heads, tokens, dim, gain)
    sizes = _sizes(seed, batch, tokens)
    sizes[:, -1] = 0.0 if tokens > 1 else 1.0  # padding
    bias, scale, first = attention.size_bias(sizes if biased else None, q.dtype), dim**-0.5, min(first, tokens - 1)
    out, sums = torch.ops.ttf.summed_attention(q, k, v, bias, scale, first)
    exact = (q.double() * scale) @ k.double().transpose(-2, -1)
    if bias is not None:
        exact = exact + bias.double()
    largest = float(exact[exact.isfinite()].abs().max())
    share = exact.softmax(-1)
    expected, answer = share[:, :, first:].sum((1, 2)) / heads, share @ v.double()
    assert bool(((sums - expected).abs() <= 1e-6 * (4 + largest) * expected + 1e-30).all())
    assert float((out - answer).abs().max()) <= 1e-6 * (1 + largest) * float(v.abs().max())
    assert out.transpose(1, 2).is_contiguous()
    if biased and tokens > 1:
        assert float(sums[:, -1].abs().max()) == 0.0


def _view(seed: int, batch: int, tokens: int, channels: int, prefix: int, sized: bool) -> LayerView:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, 1, channels, generator=generator)
    x = x + torch.randn(batch, tokens, channels, generator=generator)
    scores = torch.rand(batch, tokens, generator=generator)
    return LayerView(x, prefix, sizes=_sizes(seed, batch, tokens) if sized else None, scores=scores)


def _exactly(method: TokenTransform, view: LayerView, keep: int) -> Reduction:
    """The plain operators in float64."""
    assert view.scores is not None
    sizes = None if view.sizes is None else view.sizes.double()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "float", Tensor.double)
        return method.reduce(replace(view, x=view.x.double(), scores=view.scores.double(), sizes=sizes), keep)


@example(0, 2, 197, 384, 1, True, True, "zero", "redundancy", 150.0, 0.7)
@example(1, 1, 1300, 64, 1, False, False, "mask", "redundancy", 150.0, 0.7)  # the threads share an image
@example(2, 1, 700, 64, 1, True, False, "zero", "informative", 150.0, 0.3)
@given(
    Seeds,
    st.integers(1, 4),
    st.integers(4, 60),
    st.sampled_from([3, 8, 33]),
    st.integers(0, 2),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["zero", "mask"]),
    st.sampled_from(["redundancy", "informative"]),
    st.sampled_from([1.0, 30.0, 150.0]),
    st.floats(0.1, 1.0),
)
def test_transform_keeps_the_contract(
    seed: int,
    batch: int,
    tokens: int,
    channels: int,
    prefix: int,
    sized: bool,
    isolate: bool,
    gate: str,
    selection: str,
    tau: float,
    ratio: float,
) -> None:
    view = _view(seed, batch, tokens, channels, prefix, sized)
    keep = min(tokens, prefix + max(1, int(ratio * (tokens - prefix))))
    method = TokenTransform(isolate=isolate, gate=gate, selection=selection, tau=tau)
    (y, fast), exact = method(view, keep), _exactly(method, view, keep)
    assert isinstance(fast, TransformReduction)
    assert isinstance(exact, DenseReduction)
    assert exact.assignment.dtype == torch.float64
    assert torch.equal(fast.kept, exact.kept)
    error = 3e-7 * (4 + tau)
    assert float((fast.dense().assignment - exact.assignment).abs().max()) <= error
    assert bool(((fast.sizes - exact.sizes).abs() <= error * exact.sizes + 1e-3 * error).all())
    answer = exact.down(view.x.double())
    assert float((y - answer).abs().max()) <= error * float(answer.abs().max())
    other, short = view.x.flip(1), answer.float()  # other tokens than those that were transformed; the way back
    plain = {"atol": error * float(answer.abs().max()), "rtol": 0}
    torch.testing.assert_close(fast.down(other), exact.down(other.double()).float(), **plain)
    torch.testing.assert_close(fast.spread(short), exact.spread(answer).float(), **plain)


def test_other_strides_give_the_same() -> None:
    view = _view(3, 2, 40, 12, 1, True)
    turned = replace(view, x=view.x.transpose(1, 2).contiguous().transpose(1, 2), scores=view.scores.t().clone().t())
    one, other = (TokenTransform()(each, 20)[0] for each in (view, turned))
    assert torch.equal(one, other)
    q, k, v = _heads(0, 2, 3, 20, 8, 1.0)
    apart = [each.transpose(2, 3).contiguous().transpose(2, 3) for each in (q, k, v)]
    one, other = (torch.ops.ttf.summed_attention(*parts, None, 0.3, 0) for parts in ((q, k, v), apart))
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)
    same = q[:1].expand(2, -1, -1, -1)
    assert torch.equal(*torch.ops.ttf.summed_attention(same, same, same, None, 0.3, 0)[1])


def test_of_equal_scores_the_first_token_is_chosen() -> None:
    view = replace(_view(0, 1, 9, 4, 1, False), scores=torch.ones(1, 9))
    for selection in ("informative", "redundancy"):
        assert TokenTransform(selection=selection).reduce(view, 4).kept.tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize("images", [2, 7])  # threads share each image; images share the threads
@pytest.mark.parametrize("selection", ["redundancy", "informative"])
def test_two_runs_give_the_same_bits_and_threads_hardly_matter(images: int, selection: str) -> None:
    view, heads = _view(0, images, 1100, 16, 1, True), _heads(0, images, 2, 300, 16, 1.0)

    def run() -> tuple[Tensor, ...]:
        return (
            TokenTransform(selection=selection)(view, 700)[0],
            *torch.ops.ttf.summed_attention(*heads, None, 0.25, 0),
        )

    alone = run()
    assert all(map(torch.equal, alone, run()))
    torch.set_num_threads(3)
    try:
        together, again = run(), run()
    finally:
        torch.set_num_threads(1)
    assert all(map(torch.equal, together, again))
    for a, b in zip(alone, together, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("name", ["auto", "plain"])
def test_no_layer_keeps_its_tokens(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain, "MANY", 1)  # without the compiled operator: in blocks
    view = _view(0, 2, 40, 6, 1, True)
    with backend(name):
        y, reduction = TokenTransform()(replace(view, x=view.x.clone()), 20)
    assert isinstance(reduction, TransformReduction)
    tokens = weakref.ref(reduction.features._base)
    back = reduction.retained("transpose")
    torch.testing.assert_close(back.matrix(), reduction.matrix())
    torch.testing.assert_close(back.spread(y), reduction.spread(y))
    torch.testing.assert_close(reduction.down(view.x), y, atol=1e-4, rtol=1e-5)
    del reduction
    assert tokens() is None


def test_counts_are_those_of_the_plain_operators() -> None:
    view, heads = _view(0, 2, 40, 6, 1, True), _heads(0, 2, 3, 20, 8, 1.0)
    for method in (TokenTransform(), TokenTransform(isolate=False, selection="informative")):
        counts = []
        for name in ("plain", "auto"):
            with backend(name), FlopCounterMode(display=False) as counter:
                method(view, 20)
                attention.summed_attention(*heads, None, 0.3)
            counts.append(counter.get_total_flops())
        assert counts[0] == counts[1] > 0


def test_only_inference_in_float32_on_a_cpu() -> None:
    cpu, x, reading = torch.device("cpu"), torch.ones(1, 3, 2), plain.Reading(0.5, 150.0, "zero", True)
    assert runner(cpu, torch.float32, torch.float32) == "compiled"
    assert runner(cpu, torch.float32, torch.float64) == runner(torch.device("cuda"), torch.float32) == "plain"
    assert operators_used(cpu) == "compiled operators"
    assert operators_used(cpu, torch.bfloat16) == "plain operators"
    assert fused.at_once(reading, x)
    assert not fused.at_once(reading, x, x.double())
    assert not fused.at_once(reading, x.half())
    assert not fused.at_once(reading, x.to("meta"))
    learning = x.clone().requires_grad_()
    assert not fused.at_once(reading, learning)
    with torch.no_grad():
        assert fused.at_once(reading, learning)
    with backend("plain"):
        assert not fused.at_once(reading, x)
        assert operators_used(cpu) == "plain operators"


@pytest.mark.parametrize("options", [{}, {"preset": "paper"}, {"feature": "xk"}, {"recover": True}], ids=str)
def test_a_model_gives_the_same_answer_with_them(options: dict[str, object]) -> None:
    from ttf.models.vit_mini import vit_mini

    model = vit_mini().eval()
    images, answers = torch.randn(3, 3, *model.patch_embed.img_size), []
    ttf.apply(model, ratio=0.5, **options)
    for name in ("plain", "auto"):
        with torch.no_grad(), backend(name):
            answers.append((model(images), ttf.trace(model, images)[0].W))
    for expected, fast in zip(*answers, strict=True):
        torch.testing.assert_close(fast, expected, atol=2e-4, rtol=0)
