"""The transform in blocks, for long sequences: what the plain operators give."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from ttf.methods.base import LayerView
from ttf.methods.token_transform import TokenTransform
from ttf.ops import fused
from ttf.ops.reduction import DenseReduction


@pytest.fixture(autouse=True)
def _without_native(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TTF_NATIVE", "0")


def _view(seed: int, batch: int, tokens: int, prefix: int, with_sizes: bool, features: int = 6) -> LayerView:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, 1, features, generator=generator) + torch.randn(batch, tokens, features, generator=generator)
    scores, sizes = (torch.rand(batch, tokens, generator=generator) for _ in range(2))
    return LayerView(x, prefix, sizes=1 + 4 * sizes if with_sizes else None, scores=scores)


@given(
    st.integers(0, 999), st.integers(1, 3), st.integers(6, 40), st.integers(0, 2), st.booleans(), st.booleans(),
    st.sampled_from(["zero", "mask"]), st.integers(1, 400),
)  # fmt: skip
def test_blocks_give_what_the_plain_operators_give(
    seed: int, batch: int, tokens: int, prefix: int, with_sizes: bool, isolate: bool, gate: str, block: int
) -> None:
    view, keep = _view(seed, batch, tokens, prefix, with_sizes), prefix + (tokens - prefix) // 2
    method = TokenTransform(isolate=isolate, gate=gate, tau=30.0)
    plain = method.reduce(view, keep)
    assert isinstance(plain, DenseReduction)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "MANY", 1)
        patch.setattr(fused, "BLOCK", block)
        blocks = method.reduce(view, keep)
    assert isinstance(blocks, fused.FusedReduction)
    assert torch.equal(blocks.kept, plain.kept)
    close = {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(blocks.down(view.x), plain.down(view.x), **close)
    torch.testing.assert_close(blocks.sizes, plain.sizes, **close)
    torch.testing.assert_close(blocks.matrix(), plain.matrix(), **close)
    other = view.x.flip(1)  # other tokens than those that were transformed
    torch.testing.assert_close(blocks.down(other), plain.down(other), **close)
    short = plain.down(view.x)
    torch.testing.assert_close(blocks.spread(short), plain.spread(short), **close)


def test_short_sequences_gradients_and_half_precision_take_the_plain_operators() -> None:
    long = torch.zeros(1, fused.MANY, 2)
    assert fused.wants_blocks(long)
    assert not fused.wants_blocks(long[:, 1:])
    assert not fused.wants_blocks(long.half())
    assert not fused.wants_blocks(long.clone().requires_grad_())


def test_blocks_count_as_many_multiply_accumulates(monkeypatch: pytest.MonkeyPatch) -> None:
    view, counts = _view(0, 1, 40, 1, True), []
    for many in (100, 1):
        monkeypatch.setattr(fused, "MANY", many)
        with FlopCounterMode(display=False) as counter:
            TokenTransform().reduce(view, 20).down(view.x)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1]
