"""What holds for every reduction method, over random layers of any shape."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.methods_under_test import CASES, MethodCase
from ttf.methods import LayerView
from ttf.methods.algm import ALGM
from ttf.ops.attention import column_sums
from ttf.ops.recovery import nearest_token
from ttf.ops.reduction import LocalReduction, NearestReduction, Reduction

TOKENS = ("x", "keys", "normed", "class_query", "flat_keys")  # what is in the model's precision
methods = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
few = settings(max_examples=12)


@dataclass(frozen=True)
class Shape:
    """Of one layer."""

    batch: int
    grid: tuple[int, int]
    prefix: int
    sized: bool
    seed: int
    ratio: float

    def view(self, case: MethodCase) -> LayerView:
        """Everything that a layer may know, with at least one prefix token for methods that need one."""
        wanted = case.method.wanted if case.method is not None else None
        prefix = max(self.prefix, 1) if wanted is not None and wanted.needs_class_token else self.prefix
        view = _random_view(self.batch, self.grid, prefix, self.sized, self.seed)
        assert view.attention is not None
        rows = None if wanted is None else wanted.score_rows
        return view if rows is None else replace(view, scores=column_sums(view.attention, rows, prefix))

    def keep(self, view: LayerView) -> int:
        patches = self.grid[0] * self.grid[1]
        return view.prefix + max(1, min(patches - 1, int(self.ratio * patches)))


shapes = st.builds(
    Shape,
    batch=st.integers(1, 3),
    grid=st.tuples(st.integers(2, 5), st.integers(2, 5)),
    prefix=st.integers(0, 3),
    sized=st.booleans(),
    seed=st.integers(0, 9999),
    ratio=st.floats(0.05, 0.99),
)


def _random_view(batch: int, grid: tuple[int, int], prefix: int, sized: bool, seed: int) -> LayerView:
    generator = torch.Generator().manual_seed(seed)
    tokens = prefix + grid[0] * grid[1]

    def normal(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, generator=generator)

    sizes = normal(tokens).abs() + 0.5
    sizes[:, :prefix] = 1.0
    return LayerView(
        x=normal(tokens, 6) + 0.5,
        prefix=prefix,
        sizes=sizes if sized else None,
        keys=normal(tokens, 4),
        normed=normal(tokens, 6),
        attention=normal(2, tokens, tokens).softmax(-1),
        value_norms=normal(tokens).abs() + 0.1,
        class_query=normal(6),
        flat_keys=normal(tokens, 6),
        block=seed % 5,
        grid=grid,
    )


def _tensors(view: LayerView) -> Iterator[tuple[str, Tensor]]:
    for field in fields(view):
        if isinstance(value := getattr(view, field.name), Tensor):
            yield field.name, value


def _reduce(case: MethodCase, shape: Shape) -> tuple[LayerView, Reduction]:
    view = shape.view(case)
    return view, case.for_view(view).reduce(view, shape.keep(view))


def _real(reduction: Reduction) -> Tensor:
    """(B, M) bool: new tokens that are no padding."""
    return reduction.sizes > 0


@methods
@few
@given(shapes)
def test_down_applies_the_matrix(case: MethodCase, shape: Shape) -> None:
    view, reduction = _reduce(case, shape)
    weights = reduction.matrix()
    assert weights.dtype == torch.float32
    assert bool(torch.isfinite(weights).all()) and bool((weights >= 0).all())
    torch.testing.assert_close(reduction.down(view.x), weights @ view.x, atol=1e-5, rtol=1e-5)
    y, again = case.for_view(view)(view, shape.keep(view))
    torch.testing.assert_close(y, again.matrix() @ view.x, atol=1e-5, rtol=1e-5)


@methods
@few
@given(shapes)
def test_methods_say_whether_they_name_a_token_for_every_new_one(case: MethodCase, shape: Shape) -> None:
    view, reduction = _reduce(case, shape)
    named = reduction.kept is not None and reduction.kept.shape == reduction.sizes.shape
    assert case.for_view(view).names_tokens == named


@methods
@few
@given(shapes)
def test_what_is_retained_is_enough_for_the_way_back(case: MethodCase, shape: Shape) -> None:
    view, reduction = _reduce(case, shape)
    y = reduction.down(view.x)
    assert torch.equal(reduction.retained("transpose").up(y), reduction.up(y))
    nearest = reduction.nearest
    if nearest is None and not isinstance(reduction, LocalReduction):
        nearest = nearest_token(view.x, y, view.prefix)
    reduction = replace(reduction, nearest=nearest)
    kept = reduction.retained("nearest")
    assert torch.equal(kept.up(y), reduction.up(y))
    assert isinstance(kept, LocalReduction | NearestReduction)
    assert (kept.grid, kept.kept is reduction.kept, kept.sizes is reduction.sizes) == (reduction.grid, True, True)


@methods
@few
@given(shapes)
def test_number_of_tokens(case: MethodCase, shape: Shape) -> None:
    view, reduction = _reduce(case, shape)
    batch, new, old = reduction.matrix().shape
    assert (batch, old) == tuple(view.x.shape[:2])
    assert reduction.sizes.shape == (batch, new)
    assert view.prefix < new
    if case.extra is not None:
        assert new == shape.keep(view) + case.extra
    if isinstance(case.method, ALGM):
        assert new >= shape.keep(view)
    elif case.method is not None and case.method.adaptive:
        assert new <= shape.keep(view)
    if reduction.grid is not None:
        assert new - view.prefix == reduction.grid[0] * reduction.grid[1]
    if reduction.kept is not None:
        assert reduction.kept.shape[1] <= new
        assert int(reduction.kept.min()) >= 0 and int(reduction.kept.max()) < old


@methods
@few
@given(shapes)
def test_rows_sum_as_documented(case: MethodCase, shape: Shape) -> None:
    _, reduction = _reduce(case, shape)
    sums = reduction.matrix().sum(2)
    if case.rows == "one":
        torch.testing.assert_close(sums, torch.ones_like(sums), atol=1e-5, rtol=0)
    if case.rows == "at most one":
        assert bool((sums <= 1 + 1e-5).all())


@methods
@few
@given(shapes)
def test_columns_of_exclusive_methods(case: MethodCase, shape: Shape) -> None:
    weights = _reduce(case, shape)[1].matrix()
    if case.exclusive:
        assert int((weights > 0).sum(1).max()) <= 1


@methods
@few
@given(shapes)
def test_isolated_prefix_tokens_keep_to_themselves(case: MethodCase, shape: Shape) -> None:
    view, reduction = _reduce(case, shape)
    if not getattr(case.method, "isolate", True):
        return
    weights, prefix = reduction.matrix(), view.prefix
    assert torch.equal(weights[:, :prefix, :prefix], torch.eye(prefix).expand(view.x.shape[0], -1, -1))
    assert weights[:, :prefix, prefix:].count_nonzero() == weights[:, prefix:, :prefix].count_nonzero() == 0
    assert torch.equal(reduction.down(view.x)[:, :prefix], view.x[:, :prefix])
    assert torch.equal(reduction.sizes[:, :prefix], torch.ones(view.x.shape[0], prefix))


@methods
@given(shapes)
@example(Shape(3, (2, 3), 0, False, 1, 0.25))  # six tokens that point in all directions, one is left
def test_sizes_are_sizes(case: MethodCase, shape: Shape) -> None:
    _, reduction = _reduce(case, shape)
    assert reduction.sizes.dtype == torch.float32
    assert bool(torch.isfinite(reduction.sizes).all()) and bool((reduction.sizes >= 0).all())
    assert bool((reduction.matrix()[~_real(reduction)] == 0).all())  # size 0 marks padding


def _shuffled(view: LayerView, order: Tensor) -> LayerView:
    """The same layer with its tokens in another order."""
    assert view.attention is not None
    moved = {name: value[:, order] for name, value in _tensors(view) if name not in ("attention", "class_query")}
    return replace(view, **moved, attention=view.attention[:, :, order][..., order])


@methods
@few
@given(shapes, st.integers(0, 999))
def test_shuffled_patches_give_the_same_tokens(case: MethodCase, shape: Shape, seed: int) -> None:
    if not case.equivariant:
        return
    view = shape.view(case)
    method, keep, prefix = case.for_view(view), shape.keep(view), view.prefix
    patches = torch.randperm(view.x.shape[1] - prefix, generator=torch.Generator().manual_seed(seed))
    order = torch.cat((torch.arange(prefix), patches + prefix))
    expected, moved = method.reduce(view, keep), method.reduce(_shuffled(view, order), keep)
    back = torch.zeros_like(expected.matrix())
    back[:, :, order] = moved.matrix()
    rows, others = (
        torch.cat((w, r.sizes.unsqueeze(-1)), -1) for w, r in ((expected.matrix(), expected), (back, moved))
    )
    apart = (rows.unsqueeze(2) - others.unsqueeze(1)).abs().amax(-1)
    assert bool((apart.amin(1) < 1e-3).all()) and bool((apart.amin(2) < 1e-3).all())


@methods
@few
@given(shapes)
def test_gradients_flow_to_the_tokens(case: MethodCase, shape: Shape) -> None:
    view = shape.view(case)
    leaves: dict[str, Any] = {name: value.detach().requires_grad_() for name, value in _tensors(view)}
    view = replace(view, **leaves)
    y = case.for_view(view).reduce(view, shape.keep(view)).down(view.x)
    y.square().sum().backward()
    assert view.x.grad is not None and view.x.grad.count_nonzero() > 0
    for value in leaves.values():
        assert value.grad is None or bool(torch.isfinite(value.grad).all())


@methods
@few
@given(shapes)
def test_images_do_not_see_each_other(case: MethodCase, shape: Shape) -> None:
    if not case.alone:
        return
    view = shape.view(case)
    method, keep = case.for_view(view), shape.keep(view)
    together = method.reduce(view, keep)
    for image in range(view.x.shape[0]):
        single = method.reduce(replace(view, **{name: value[image, None] for name, value in _tensors(view)}), keep)
        new = single.sizes.shape[1]
        torch.testing.assert_close(together.matrix()[image, :new], single.matrix()[0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(together.sizes[image, :new], single.sizes[0], atol=1e-4, rtol=1e-4)
        assert bool((together.sizes[image, new:] == 0).all())


@methods
@few
@given(shapes)
def test_all_tokens_come_back(case: MethodCase, shape: Shape) -> None:
    view, reduction = _reduce(case, shape)
    y = reduction.down(view.x)
    for back in (reduction.up(y), reduction.spread(y)):
        assert back.shape == view.x.shape
        assert bool(torch.isfinite(back).all())
    if reduction.nearest is not None:
        assert reduction.nearest.shape == view.x.shape[:2]


@methods
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@few
@given(shape=shapes)
def test_tokens_in_half_precision(case: MethodCase, dtype: torch.dtype, shape: Shape) -> None:
    view = shape.view(case)
    view = replace(view, **{name: value.to(dtype) for name, value in _tensors(view) if name in TOKENS})
    reduction = case.for_view(view).reduce(view, shape.keep(view))
    weights, y = reduction.matrix(), reduction.down(view.x)
    assert y.dtype == reduction.up(y).dtype == dtype
    assert weights.dtype == reduction.sizes.dtype == torch.float32
    torch.testing.assert_close(y.float(), weights @ view.x.float(), atol=0.05, rtol=0.05)
    assert bool(torch.isfinite(reduction.up(y)).all())


@methods
@few
@given(shapes)
def test_autocast_does_not_touch_the_decisions(case: MethodCase, shape: Shape) -> None:
    view, plain = _reduce(case, shape)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = case.for_view(view).reduce(view, shape.keep(view))
        y = cast.down(view.x)
    assert y.dtype == view.x.dtype
    torch.testing.assert_close(cast.sizes, plain.sizes)
    torch.testing.assert_close(cast.matrix(), plain.matrix())
