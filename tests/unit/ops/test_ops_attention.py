"""Size-scaled attention (Eq. 7) and the column sums of its map (Eq. 2)."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ttf.ops import attention as attention_ops
from ttf.ops import backend
from ttf.ops.attention import column_sums, fused_attention, mapped_attention, size_bias, summed_attention


@st.composite
def heads(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (B, H, N, D)."""
    shape = [draw(st.integers(1, high)) for high in (3, 4, 12, 8)]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    q, k, v = (2 * torch.randn(3, *shape, generator=generator)).unbind(0)
    return q, k, v


def _sizes(q: Tensor) -> Tensor:
    return torch.rand(q.shape[0], q.shape[2], generator=torch.Generator().manual_seed(7)) * 9 + 0.1


def _by_definition(q: Tensor, k: Tensor, sizes: Tensor) -> Tensor:
    """softmax(q k / sqrt(D) + log s), row by row, in double precision."""
    q, k, sizes = q.double(), k.double(), sizes.double()
    out = q.new_zeros(*q.shape[:3], k.shape[2])
    for b, h, i in torch.cartesian_prod(*(torch.arange(n) for n in q.shape[:3])).tolist():
        weights = sizes[b] * torch.exp(k[b, h] @ q[b, h, i] / math.sqrt(q.shape[-1]))
        out[b, h, i] = weights / weights.sum()
    return out


@given(heads(), st.booleans())
def test_mapped_attention_equals_fused_attention(qkv: tuple[Tensor, Tensor, Tensor], biased: bool) -> None:
    q, k, v = qkv
    bias = size_bias(_sizes(q) if biased else None, q.dtype)
    scale = q.shape[-1] ** -0.5
    out, _ = mapped_attention(q, k, v, bias, scale)
    torch.testing.assert_close(out, fused_attention(q, k, v, bias, scale), atol=1e-5, rtol=1e-5)


@given(heads(), st.booleans())
def test_map_is_the_softmax_scaled_by_sizes(qkv: tuple[Tensor, Tensor, Tensor], biased: bool) -> None:
    q, k, v = qkv
    sizes = _sizes(q) if biased else torch.ones(q.shape[0], q.shape[2])
    bias = size_bias(sizes if biased else None, q.dtype)
    _, attention = mapped_attention(q, k, v, bias, q.shape[-1] ** -0.5)
    torch.testing.assert_close(attention.double(), _by_definition(q, k, sizes), atol=1e-5, rtol=1e-5)


def test_integer_sizes_stand_for_copies_of_a_token() -> None:
    generator = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(1, 2, 5, 4, generator=generator) for _ in range(3))
    counts = torch.tensor([1, 3, 2, 1, 4])
    copied_k, copied_v = (x.repeat_interleave(counts, dim=2) for x in (k, v))
    out = fused_attention(q, k, v, size_bias(counts[None].float(), q.dtype), 0.5)
    torch.testing.assert_close(out, fused_attention(q, copied_k, copied_v, None, 0.5), atol=1e-6, rtol=1e-5)


def test_log_of_a_vanished_size_is_finite_and_padding_is_never_attended_to():
    bias = size_bias(torch.tensor([[0.0, 1e-30, 1.0]]), torch.float16)
    assert bias is not None
    assert bias[0, 0, 0, 0] == -torch.inf  # size 0 marks padding
    assert bool(torch.isfinite(bias[..., 1:]).all())
    assert bias[..., 2].item() == 0.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_the_map_in_float32(dtype: torch.dtype) -> None:
    q, k, v = torch.randn(3, 1, 2, 6, 4, generator=torch.Generator().manual_seed(0)).to(dtype).unbind(0)
    out, attention = mapped_attention(q, k, v, None, 0.5)
    assert out.dtype == dtype
    assert attention.dtype == torch.float32
    torch.testing.assert_close(attention.sum(-1), torch.ones(1, 2, 6), atol=1e-6, rtol=0)


def test_dropout_leaves_the_map_whole() -> None:
    q, k, v = torch.randn(3, 1, 2, 6, 4, generator=torch.Generator().manual_seed(0)).unbind(0)
    out, attention = mapped_attention(q, k, v, None, 0.5, dropout=0.9)
    torch.testing.assert_close(attention.sum(-1), torch.ones(1, 2, 6), atol=1e-6, rtol=0)
    assert not torch.allclose(out, attention @ v)


@given(heads(), st.sampled_from([("all", 0), ("all", 1), ("patch", 0), ("patch", 1), ("patch", 2), ("class", 1)]))
def test_column_sums_equal_the_definition(qkv: tuple[Tensor, Tensor, Tensor], case: tuple[str, int]) -> None:
    rows, prefix = case
    attention = torch.softmax(qkv[0] @ qkv[1].transpose(-2, -1), dim=-1)
    batch, heads_, tokens, _ = attention.shape
    chosen = {"all": range(tokens), "patch": range(prefix, tokens), "class": range(1)}[rows]
    expected = torch.zeros(batch, tokens, dtype=torch.float64)
    for i in chosen:
        for h in range(heads_):
            expected += attention[:, h, i].double() / heads_
    got = column_sums(attention, rows, prefix)  # type: ignore[arg-type]
    torch.testing.assert_close(got.double(), expected, atol=1e-5, rtol=1e-5)


def test_column_sums_of_all_rows_sum_to_the_number_of_tokens() -> None:
    attention = torch.softmax(torch.randn(2, 3, 20, 20, generator=torch.Generator().manual_seed(0)), dim=-1)
    torch.testing.assert_close(column_sums(attention).sum(1), torch.full((2,), 20.0))


@pytest.mark.parametrize(("rows", "first"), [("all", 0), ("patch", 2)])
@pytest.mark.parametrize("step", [2, 5, 50])
def test_every_so_many_th_row_alone(rows: attention_ops.ScoreRows, first: int, step: int) -> None:
    q, k, v = torch.randn(3, 2, 3, 17, 8)
    bias = size_bias(torch.rand(2, 17), q.dtype)
    out, sums = summed_attention(q, k, v, bias, 0.3, rows=rows, prefix=2, step=step)
    expected, plain = mapped_attention(q, k, v, bias, 0.3)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(sums, plain[:, :, first::step].sum((1, 2)) / 3)


def test_class_rows_need_a_class_token() -> None:
    with pytest.raises(ValueError, match="class token"):
        column_sums(torch.ones(1, 1, 2, 2), "class", prefix=0)


def test_unknown_rows_list_the_valid_ones() -> None:
    with pytest.raises(ValueError, match="all, patch, class"):
        column_sums(torch.ones(1, 1, 2, 2), "cls")  # type: ignore[arg-type]


@given(heads(), st.booleans(), st.sampled_from(["all", "patch"]), st.integers(0, 2), st.integers(1, 400))
def test_column_sums_in_blocks_are_those_of_the_whole_map(
    qkv: tuple[Tensor, Tensor, Tensor], biased: bool, rows: str, prefix: int, block: int
) -> None:
    q, k, v = qkv
    sizes = _sizes(q)
    sizes[:, -1] = 0.0 if q.shape[2] > 1 else 1.0  # padding
    bias = size_bias(sizes if biased else None, q.dtype)
    with pytest.MonkeyPatch.context() as patch, backend("plain"):
        patch.setattr(attention_ops, "CPU_BLOCK", block)  # several images, heads or queries at a time, or one
        out, sums = summed_attention(q, k, v, bias, 0.3, rows=rows, prefix=min(prefix, q.shape[2] - 1))
    whole, attention = mapped_attention(q, k, v, bias, 0.3)
    torch.testing.assert_close(out, whole, atol=1e-6, rtol=1e-6)
    expected = column_sums(attention, rows, min(prefix, q.shape[2] - 1))
    torch.testing.assert_close(sums, expected, atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_column_sums_in_blocks_keep_float32_in_half_precision(dtype: torch.dtype) -> None:
    q, k, v = torch.randn(3, 2, 2, 9, 4, generator=torch.Generator().manual_seed(0)).to(dtype).unbind(0)
    out, sums = summed_attention(q, k, v, None, 0.5)
    assert out.dtype == dtype
    assert sums.dtype == torch.float32
    torch.testing.assert_close(sums.sum(1), torch.full((2,), 9.0), atol=1e-5, rtol=0)


def test_column_sums_have_a_gradient() -> None:
    q, k, v = torch.randn(3, 1, 2, 5, 4, generator=torch.Generator().manual_seed(0)).unbind(0)
    q.requires_grad_()
    summed_attention(q, k, v, None, 0.5)[1].square().sum().backward()
    assert q.grad is not None
    assert float(q.grad.abs().sum()) > 0


def test_an_additive_bias_is_left_as_it_was() -> None:
    q, k, v = torch.randn(3, 2, 2, 5, 4, generator=torch.Generator().manual_seed(0)).unbind(0)
    bias = size_bias(torch.rand(2, 5) + 0.5, q.dtype)
    assert bias is not None
    before = bias.clone()
    summed_attention(q, k, v, bias, 0.5)
    assert torch.equal(bias, before)
