"""The transform as one operator, by torch's own: in blocks, for long sequences, and whole."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from ttf.methods.base import LayerView
from ttf.methods.token_transform import TokenTransform
from ttf.ops import backend, fused, plain
from ttf.ops.reduction import DenseReduction

READING = plain.Reading(0.5, 30.0, "zero", True)


@pytest.fixture(autouse=True)
def _plain() -> Iterator[None]:
    with backend("plain"):
        yield


def _view(seed: int, batch: int, tokens: int, prefix: int, with_sizes: bool, features: int = 6) -> LayerView:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, 1, features, generator=generator) + torch.randn(batch, tokens, features, generator=generator)
    scores, sizes = (torch.rand(batch, tokens, generator=generator) for _ in range(2))
    return LayerView(x, prefix, sizes=1 + 4 * sizes if with_sizes else None, scores=scores)


@given(
    st.integers(0, 999),
    st.integers(1, 3),
    st.integers(6, 40),
    st.integers(0, 2),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["zero", "mask"]),
    st.integers(1, 400),
)
def test_blocks_give_what_the_plain_operators_give(
    seed: int, batch: int, tokens: int, prefix: int, with_sizes: bool, isolate: bool, gate: str, block: int
) -> None:
    view, keep = _view(seed, batch, tokens, prefix, with_sizes), prefix + (tokens - prefix) // 2
    method = TokenTransform(isolate=isolate, gate=gate, tau=30.0)
    y, whole = method(view, keep)
    assert isinstance(whole, DenseReduction)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plain, "MANY", 1)
        patch.setattr(plain, "BLOCK", block)
        other, blocks = method(view, keep)
    assert isinstance(blocks, fused.TransformReduction)
    assert torch.equal(blocks.kept, whole.kept)
    close = {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(other, y, **close)
    torch.testing.assert_close(blocks.down(view.x), y, **close)
    torch.testing.assert_close(blocks.sizes, whole.sizes, **close)
    torch.testing.assert_close(blocks.matrix(), whole.matrix(), **close)
    turned = view.x.flip(1)  # other tokens than those that were transformed
    torch.testing.assert_close(blocks.down(turned), whole.down(turned), **close)
    torch.testing.assert_close(blocks.spread(y), whole.spread(y), **close)


@given(st.integers(0, 999), st.booleans(), st.booleans(), st.sampled_from(["zero", "mask"]), st.booleans())
def test_the_operator_gives_the_bits_of_torchs_own(
    seed: int, with_sizes: bool, isolate: bool, gate: str, redundancy: bool
) -> None:
    view = _view(seed, 2, 30, 1, with_sizes)
    selection = "redundancy" if redundancy else "informative"
    y, dense = TokenTransform(isolate=isolate, gate=gate, tau=30.0, selection=selection)(view, 12)
    isolated = int(isolate)
    mass = None if view.sizes is None else view.sizes[:, isolated:]
    layer = (view.x, view.x[:, isolated:], view.scores, mass, 12, 1)
    out, sizes, index = torch.ops.ttf.transform(*layer, 0.5, 30.0, gate == "mask", redundancy)
    assert torch.equal(out, y) and torch.equal(sizes, dense.sizes)
    assert torch.equal(index + isolated, dense.kept[:, isolated:])


def test_short_sequences_gradients_and_half_precision_run_one_by_one() -> None:
    long = torch.zeros(1, plain.MANY, 2)
    assert fused.at_once(READING, long)
    assert not fused.at_once(READING, long[:, 1:])
    assert not fused.at_once(READING, long.half())
    assert not fused.at_once(READING, long.clone().requires_grad_())
    assert not fused.at_once(plain.Reading(0.5, 30.0, "zero", False), long)
    assert not fused.at_once(READING, long.to("meta"))


def test_blocks_count_as_many_multiply_accumulates(monkeypatch: pytest.MonkeyPatch) -> None:
    view, counts = _view(0, 1, 40, 1, True), []
    for many in (100, 1):
        monkeypatch.setattr(plain, "MANY", many)
        with FlopCounterMode(display=False) as counter:
            TokenTransform()(view, 20)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0
