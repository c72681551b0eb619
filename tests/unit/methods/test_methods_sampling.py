"""Sampling, squeezing, clustering on grids and plain pruning: edges that the reference data do not reach."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

import ttf
from ttf.methods import LayerView, Method
from ttf.methods.ats import ATS
from ttf.methods.hourglass import Hourglass, cluster
from ttf.methods.random_pruning import RandomPruning
from ttf.methods.top_k import TopK
from ttf.methods.tps import TPS
from ttf.methods.uniform import UniformPool, UniformStride
from ttf.ops.grid import grid_for, pooling_matrix
from ttf.ops.recovery import reconstruction_weights
from ttf.ops.reduction import Reduction

Tiny = Callable[..., VisionTransformer]
Images = Callable[..., Tensor]
GRID = (4, 6)
METHODS = [TPS(), ATS(trim=False), Hourglass(), UniformPool(), UniformStride(), RandomPruning(), TopK(), TopK("class")]
EXACT = (TPS, UniformStride, RandomPruning, TopK)  # as many tokens as ``keep`` says


def _view(prefix: int = 1, batch: int = 3, grid: tuple[int, int] | None = GRID, seed: int = 0) -> LayerView:
    generator = torch.Generator().manual_seed(seed)
    tokens = prefix + GRID[0] * GRID[1]
    x = torch.randn(batch, tokens, 8, generator=generator)
    scores, norms = torch.rand(2, batch, tokens, generator=generator).unbind(0)
    return LayerView(x, prefix, scores=scores, value_norms=norms, grid=grid)


def _image(view: LayerView, i: int) -> LayerView:
    assert view.scores is not None and view.value_norms is not None
    one = slice(i, i + 1)
    return replace(view, x=view.x[one], scores=view.scores[one], value_norms=view.value_norms[one])


def _check_prefix(matrix: Tensor, prefix: int) -> None:
    own = torch.eye(prefix, matrix.shape[2]).expand(len(matrix), -1, -1)
    assert torch.equal(matrix[:, :prefix], own)
    assert torch.equal(matrix[:, prefix:, :prefix], torch.zeros_like(matrix[:, prefix:, :prefix]))


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
@pytest.mark.parametrize("patches", [1, 11, 23])
def test_any_prefix_and_any_number_of_tokens(method: Method, prefix: int, patches: int) -> None:
    view = _view(prefix)
    reduction = method.reduce(view, prefix + patches)
    matrix = reduction.matrix()
    if isinstance(method, EXACT):
        assert matrix.shape[1] == prefix + patches
    assert reduction.sizes.shape == matrix.shape[:2] and matrix.isfinite().all()
    _check_prefix(matrix, prefix)
    alone = method.reduce(_image(view, 0), prefix + patches)
    torch.testing.assert_close(alone.matrix(), matrix[:1])
    if not isinstance(method, RandomPruning):
        torch.testing.assert_close(method.reduce(_image(view, 2), prefix + patches).matrix(), matrix[2:])


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_decides_in_float32(method: Method, dtype: torch.dtype) -> None:
    view = _view()
    low = method.reduce(replace(view, x=view.x.to(dtype)), 12)
    reference = method.reduce(replace(view, x=view.x.to(dtype).float()), 12)
    assert torch.equal(low.matrix(), reference.matrix())
    assert low.down(view.x.to(dtype)).dtype == dtype and low.sizes.dtype == torch.float32


@pytest.mark.parametrize("method", [TPS(), UniformStride(), RandomPruning(), TopK()], ids=str)
def test_methods_without_a_grid_need_none(method: Method) -> None:
    assert method.reduce(_view(grid=None), 9).matrix().shape == (3, 9, 25)


@pytest.mark.parametrize("method", [Hourglass(), UniformPool()], ids=str)
@pytest.mark.parametrize("grid", [None, (5, 5)])
def test_grids_are_needed(method: Method, grid: tuple[int, int] | None) -> None:
    with pytest.raises(ValueError, match="on a grid"):
        method.reduce(_view(grid=grid), 12)


@pytest.mark.parametrize("kind", [Hourglass, UniformPool])
def test_cells(kind: Any) -> None:
    reduction = kind(cells=(3, 2)).reduce(_view(), 20)
    assert reduction.grid == (3, 2) and reduction.matrix().shape == (3, 7, 25)
    with pytest.raises(ValueError, match="5 x 2 cells"):
        kind(cells=(5, 2)).reduce(_view(), 11)
    with pytest.raises(ValueError, match="rows, columns"):
        kind(cells=(0, 2))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (TPS, {"temperature": 0.0}),
        (ATS, {"reference": 1}),
        (Hourglass, {"iterations": 0}),
        (Hourglass, {"temperature": -1.0}),
        (Hourglass, {"window": 0}),
        (Hourglass, {"neighbours": 0}),
        (TopK, {"score_rows": "some"}),
    ],
)
def test_bad_options(kind: Any, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        kind(**options)


def test_grid_for_keeps_the_proportions() -> None:
    assert grid_for((14, 14), 98) == (10, 10)
    assert grid_for((8, 16), 32) == (4, 8)
    assert grid_for((1, 9), 4) == (1, 6)
    assert grid_for((5, 5), 1) == (1, 1)


@pytest.mark.parametrize("kind", [Hourglass, UniformPool])
def test_sizes_are_shared_between_cells(kind: Any) -> None:
    view = _view()
    first = kind(cells=(3, 4)).reduce(view, 13)
    torch.testing.assert_close(first.sizes.sum(1), torch.full((3,), 25.0))
    second = kind(cells=(2, 3)).reduce(replace(view, x=first.down(view.x), sizes=first.sizes, grid=first.grid), 7)
    torch.testing.assert_close(second.sizes.sum(1), torch.full((3,), 25.0))


def test_pooling_matrix_is_adaptive_average_pooling() -> None:
    x = torch.randn(2, 3, 7, 5)
    weights = pooling_matrix((7, 5), (3, 4), x.device)
    expected = torch.nn.functional.adaptive_avg_pool2d(x, (3, 4)).flatten(2)
    torch.testing.assert_close(x.flatten(2) @ weights.T, expected)


def test_pruned_token_between_two_equal_hosts_goes_to_both() -> None:
    x = torch.eye(3)[None] + torch.tensor([0.0, 0.0, 1.0])
    x[0, 2, :2] = 1.0  # as near to token 0 as to token 1
    weights = TPS().reduce(LayerView(x, 0, scores=torch.tensor([[3.0, 2.0, 1.0]])), 2).matrix()
    assert (weights[0, :, 2] > 0).all() and weights[0, 0, 1] == 0
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, 2))


def test_ties_among_the_nearest_are_all_kept() -> None:
    z = torch.tensor([[[0.0], [2.0], [-2.0], [3.0]]])
    weights = reconstruction_weights(torch.zeros(1, 1, 1), z, 0.1, neighbours=2)
    assert (weights > 0).tolist() == [[[True, True, True, False]]]


def test_far_apart_tokens_give_finite_clusters() -> None:
    x = 1e3 * torch.randn(1, 24, 8)
    affinity, weights, centroids = cluster(x, GRID, (2, 3))
    assert weights.isfinite().all() and centroids.isfinite().all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, 6))
    torch.testing.assert_close(affinity.sum(1), torch.ones(1, 24))
    assert reconstruction_weights(x, centroids, 0.02, 3).isfinite().all()


def _kept(method: Method, view: LayerView, keep: int) -> Tensor:
    kept = method.reduce(view, keep).kept
    assert kept is not None
    return kept[:, view.prefix :] - view.prefix


def test_random_choice_depends_on_seed_block_and_image_alone() -> None:
    view = _view()
    kept = _kept(RandomPruning(), view, 13)
    assert torch.equal(kept, _kept(RandomPruning(), _view(seed=1), 13))
    assert not torch.equal(kept[0], kept[1])
    assert not torch.equal(kept, _kept(RandomPruning(1), view, 13))
    assert not torch.equal(kept, _kept(RandomPruning(), replace(view, block=1), 13))
    assert torch.equal(kept, kept.sort(1).values)


def test_random_choice_prefers_no_place() -> None:
    kept = _kept(RandomPruning(), _view(batch=2000), 9)
    assert kept.unique(dim=0).shape[0] > 1900
    share = kept.flatten().bincount(minlength=24) / 2000  # 1/3, standard deviation 0.0105
    assert (share - 1 / 3).abs().max() < 0.045


def test_stride_spreads_over_the_raster() -> None:
    assert _kept(UniformStride(), _view(batch=1), 7).tolist() == [[2, 6, 10, 14, 18, 22]]


def test_pruning_carries_sizes() -> None:
    view = replace(_view(), sizes=torch.arange(1.0, 76.0).reshape(3, 25))
    for method in (TopK(), RandomPruning(), UniformStride()):
        reduction = method.reduce(view, 9)
        torch.testing.assert_close(reduction.sizes, (reduction.matrix() @ view.sizes.unsqueeze(-1)).squeeze(-1))


def test_equal_scores_are_sampled_evenly() -> None:
    view = replace(_view(prefix=0, batch=1), scores=torch.ones(1, 24), value_norms=torch.ones(1, 24))
    assert ATS().reduce(view, 23).sizes.sum() <= 23
    assert ATS(reference=400).reduce(view, 12).sizes.sum() == 23  # all but the first, whose share is 0


def _padding(reduction: Reduction) -> Tensor:
    return reduction.sizes == 0


def test_padding_is_zero_and_at_the_end() -> None:
    view = _view(batch=6)
    short, long = ATS().reduce(view, 18), ATS(trim=False).reduce(view, 18)
    longest, most = short.sizes.shape[1], long.sizes.shape[1]
    assert longest < most == 18 and short.sizes[:, -1].any()
    assert torch.equal(long.sizes[:, :longest], short.sizes) and _padding(long)[:, longest:].all()
    assert torch.equal(long.down(view.x)[_padding(long)], torch.zeros(int(_padding(long).sum()), 8))
    assert (long.sizes.diff(dim=1) <= 0).all()


def test_padding_changes_no_image(tiny: Tiny, images: Images) -> None:
    model, x = tiny(), images(4)
    ttf.apply(model, method=ATS(reference=65), ratio=0.9)
    with torch.no_grad():
        together = model(x)
        alone = torch.cat([model(image[None]) for image in x])
        padded = ttf.apply(model, method=ATS(65, trim=False), ratio=0.9)(x)
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(together, padded, atol=1e-4, rtol=1e-4)


def test_padding_is_never_sampled() -> None:
    view = replace(_view(), sizes=torch.ones(3, 25).index_fill(1, torch.tensor([23, 24]), 0.0))
    real, padded = view.scores[:, :23], view.scores.index_fill(1, torch.tensor([23, 24]), 0.0)
    short = LayerView(view.x[:, :23], 1, scores=real, value_norms=view.value_norms[:, :23])
    for reference in (8, 30):
        weights = ATS(reference).reduce(replace(view, scores=padded), 20).matrix()
        assert torch.equal(weights[..., :23], ATS(reference).reduce(short, 20).matrix()) and not weights[..., 23:].any()


def test_padding_stands_in_for_no_token(tiny: Tiny, images: Images) -> None:
    model = ttf.apply(tiny(), method=ATS(trim=False), ratio=0.8, recover=True)
    with torch.no_grad():
        tokens = model.blocks(torch.randn(3, 65, 48))
    assert len(tokens.chain) == 3
    for reduction in tokens.chain:
        assert _padding(reduction).any() and reduction.nearest is not None
        used = torch.zeros_like(reduction.sizes, dtype=torch.bool).scatter(1, reduction.nearest, True)
        assert not (used & _padding(reduction)).any()


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_one_graph(method: Method, tiny: Tiny, images: Images) -> None:
    model, x = tiny(depth=4).requires_grad_(False), images()
    ttf.apply(model, method=method, blocks=(1, 2), ratio=0.7)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), model(x), atol=1e-4, rtol=1e-4)
