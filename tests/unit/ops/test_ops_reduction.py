"""``Reduction``: both forms against their own matrix, and the way back (Eq. 9-10)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ttf.ops.recovery import nearest_token
from ttf.ops.reduction import AssignmentReduction, DenseReduction, Reduction, recover


@st.composite
def dense(draw: st.DrawFn) -> tuple[DenseReduction, Tensor]:
    """A many-to-many reduction and tokens (B, N, C) for it."""
    batch, old, new, prefix = (draw(st.integers(*span)) for span in ((1, 3), (2, 9), (1, 9), (0, 2)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    assignment = torch.rand(batch, old, new, generator=generator).softmax(-1)
    mass = 1 + torch.rand(batch, old, generator=generator) if draw(st.booleans()) else None
    sizes = torch.ones(batch, prefix + new)
    x = torch.randn(batch, prefix + old, 4, generator=generator)
    return DenseReduction(sizes=sizes, assignment=assignment, mass=mass, prefix=prefix), x


@st.composite
def exclusive(draw: st.DrawFn) -> tuple[AssignmentReduction, Tensor]:
    """Merging and pruning, and tokens (B, N, C) for it."""
    batch, old, new = (draw(st.integers(*span)) for span in ((1, 3), (2, 12), (1, 6)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    index = torch.randint(-1, new, (batch, old), generator=generator)
    weight = torch.rand(batch, old, generator=generator)
    x = torch.randn(batch, old, 4, generator=generator)
    return AssignmentReduction(sizes=torch.ones(batch, new), index=index, weight=weight), x


def _tokens(reduction: Reduction) -> Tensor:
    """New tokens (B, M, C) that tell each other apart."""
    return torch.randn(*reduction.sizes.shape, 4, generator=torch.Generator().manual_seed(5))


@given(st.one_of(dense(), exclusive()))
def test_down_applies_the_matrix(case: tuple[Reduction, Tensor]) -> None:
    reduction, x = case
    matrix = reduction.matrix()
    assert matrix.shape == (x.shape[0], reduction.sizes.shape[1], x.shape[1])
    torch.testing.assert_close(reduction.down(x), matrix @ x, atol=1e-5, rtol=1e-5)


@given(dense())
def test_dense_matrix_weighs_by_share_and_mass(case: tuple[DenseReduction, Tensor]) -> None:
    reduction, x = case
    mass = torch.ones(reduction.assignment.shape[:2]) if reduction.mass is None else reduction.mass
    prefix, matrix = reduction.prefix, reduction.matrix()
    for b in range(x.shape[0]):
        for i in range(reduction.assignment.shape[2]):
            row = reduction.assignment[b, :, i] * mass[b]
            torch.testing.assert_close(matrix[b, prefix + i, prefix:], row / row.sum())
    assert torch.equal(matrix[:, :prefix, :prefix], torch.eye(prefix).expand(x.shape[0], -1, -1))
    assert matrix[:, :prefix, prefix:].count_nonzero() == matrix[:, prefix:, :prefix].count_nonzero() == 0


@given(exclusive())
def test_exclusive_matrix_has_one_weight_per_live_token(case: tuple[AssignmentReduction, Tensor]) -> None:
    reduction, x = case
    expected = torch.zeros(x.shape[0], reduction.sizes.shape[1], x.shape[1])
    for b, j in torch.cartesian_prod(torch.arange(x.shape[0]), torch.arange(x.shape[1])).tolist():
        if reduction.index[b, j] >= 0:
            expected[b, reduction.index[b, j], j] = reduction.weight[b, j]
    assert torch.equal(reduction.matrix(), expected)


@given(exclusive())
def test_pruned_tokens_go_nowhere_and_come_back_empty(case: tuple[AssignmentReduction, Tensor]) -> None:
    reduction, x = case
    pruned = reduction.index < 0
    altered = torch.where(pruned.unsqueeze(-1), 1e6, x)
    assert torch.equal(reduction.down(altered), reduction.down(x))
    assert reduction.up(_tokens(reduction))[pruned].count_nonzero() == 0


@given(exclusive())
def test_merged_tokens_come_back_as_their_new_token(case: tuple[AssignmentReduction, Tensor]) -> None:
    reduction, _ = case
    y = _tokens(reduction)
    out = reduction.up(y)
    for b, j in (reduction.index >= 0).nonzero().tolist():
        assert torch.equal(out[b, j], y[b, reduction.index[b, j]])


@given(dense())
def test_dense_spread_takes_each_token_from_where_it_went(case: tuple[DenseReduction, Tensor]) -> None:
    reduction, x = case
    y, prefix = _tokens(reduction), reduction.prefix
    out = reduction.spread(y)
    assert out.shape == x.shape
    assert torch.equal(out[:, :prefix], y[:, :prefix])
    for b, j in torch.cartesian_prod(torch.arange(x.shape[0]), torch.arange(x.shape[1] - prefix)).tolist():
        expected = sum(share * y[b, prefix + i] for i, share in enumerate(reduction.assignment[b, j]))
        torch.testing.assert_close(out[b, prefix + j], expected)
    assert torch.equal(reduction.up(y), out)


@given(st.integers(1, 3), st.integers(1, 10), st.integers(1, 6), st.integers(0, 2), st.integers(0, 999))
def test_nearest_token_is_the_nearest(batch: int, old: int, new: int, prefix: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, prefix + old, 3, generator=generator)
    y = torch.randn(batch, prefix + new, 3, generator=generator)
    index = nearest_token(x, y, prefix)
    for b in range(batch):
        assert index[b, :prefix].tolist() == list(range(prefix))
        for j in range(prefix, prefix + old):
            distances = [float((x[b, j] - y[b, i]).norm()) for i in range(prefix, prefix + new)]
            assert index[b, j] == prefix + distances.index(min(distances))


@given(dense())
def test_up_gathers_by_nearest_index(case: tuple[DenseReduction, Tensor]) -> None:
    reduction, x = case
    nearest = nearest_token(x, reduction.down(x), reduction.prefix)
    y = _tokens(reduction)
    out = replace(reduction, nearest=nearest).up(y)
    for b, j in torch.cartesian_prod(torch.arange(x.shape[0]), torch.arange(x.shape[1])).tolist():
        assert torch.equal(out[b, j], y[b, nearest[b, j]])


def _indexed(nearest: list[int], new: int) -> Reduction:
    index = torch.tensor([nearest])
    return AssignmentReduction(sizes=torch.ones(1, new), nearest=index, index=index, weight=torch.ones(1, len(nearest)))


def test_recover_composes_the_last_layer_first() -> None:
    chain = (_indexed([0, 2, 1, 2, 0], 3), _indexed([1, 0, 1], 2))
    out = recover(chain, torch.tensor([[[10.0], [20.0]]]))
    assert out.flatten().tolist() == [20.0, 20.0, 10.0, 20.0, 20.0]


def test_recover_of_no_reduction_changes_nothing() -> None:
    y = torch.randn(2, 3, 4)
    assert recover((), y) is y


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_tokens_keep_their_precision(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 6, 4, generator=generator).to(dtype)
    many = DenseReduction(sizes=torch.ones(2, 3), assignment=torch.rand(2, 6, 3, generator=generator).softmax(-1))
    one = AssignmentReduction(
        sizes=torch.ones(2, 3), index=torch.tensor([[0, 0, 1, 1, 2, -1]] * 2), weight=torch.full((2, 6), 0.5)
    )
    for reduction in (many, one):
        y = reduction.down(x)
        assert y.dtype == reduction.spread(y).dtype == dtype
        assert reduction.matrix().dtype == torch.float32
        torch.testing.assert_close(y.float(), reduction.matrix() @ x.float(), atol=2e-2, rtol=2e-2)
