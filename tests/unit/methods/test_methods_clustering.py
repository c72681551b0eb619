"""Clustering and learned methods: edges that neither reference data nor the common properties reach."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

import ttf
from ttf.methods import LayerView, Method
from ttf.methods.dpc_knn import DpcKnn, cluster_tokens
from ttf.methods.k_medoids import KMedoids, k_medoids
from ttf.methods.patch_merger import PatchMerger, merge_patches
from ttf.methods.sinkhorn import Sinkhorn, transport
from ttf.methods.sit import SiT, slimming_network
from ttf.schedule import Counts

LEARNED: dict[str, Callable[[], Method]] = {
    "sinkhorn": lambda: Sinkhorn(torch.randn(7, 48), eps=0.5),
    "patch_merger": lambda: PatchMerger(torch.randn(7, 48)),
    "sit": lambda: SiT(slimming_network(48, 24, 7), 1.3),
}


def _parameters(method: Method) -> list[Tensor]:
    if isinstance(method, SiT):
        return list(method.network.parameters())
    return [value.requires_grad_() for value in vars(method).values() if isinstance(value, Tensor)]


def _blobs(batch: int = 2, clusters: int = 4, members: int = 5) -> tuple[Tensor, Tensor]:
    """Tokens (B, n, 6) around far-apart points, and the point of each (n,)."""
    points = 50.0 * torch.eye(6)[:clusters]
    point = torch.arange(clusters).repeat(members)
    return points[point] + torch.randn(batch, clusters * members, 6), point


def _same_partition(clusters: Tensor, point: Tensor) -> bool:
    together = clusters.unsqueeze(1) == clusters.unsqueeze(2)
    return bool((together == (point[:, None] == point[None])).all())


def test_clusters_far_apart_are_found() -> None:
    x, point = _blobs()
    assert _same_partition(cluster_tokens(x, 4, 3)[1], point)
    one_each = torch.arange(20.0, 0.0, -1.0).expand(2, -1)  # the first four tokens belong to four points
    assert _same_partition(k_medoids(x, 4, 2, one_each)[1], point)


def test_densities_that_underflow_still_order_the_tokens() -> None:
    """exp(-mean squared distance) is 0 in float32 for every one of these tokens."""
    x = 17.0 * (torch.rand(2, 20, 20) + torch.randn(2, 20, 20).sign())
    between = torch.cdist(x.double(), x.double()) / 20**0.5
    density = (-between.topk(3, largest=False).values.square().mean(-1)).exp()
    assert bool((density.float() == 0).all()) and bool((density > 0).all())
    denser = density.unsqueeze(1) > density.unsqueeze(2)
    apart = torch.where(denser, between, between.amax((1, 2), keepdim=True)).amin(2)
    assert torch.equal(cluster_tokens(x, 5, 3)[0], (density * apart).argsort(dim=1, descending=True)[:, :5])


def test_first_medoids_are_farthest_from_any_chosen_one() -> None:
    """On a line 0, 1, ..., 5 from token 2: token 5 is farthest, then 0 (5 from token 5), then 1 (4 from token 5)."""
    medoids, _ = k_medoids(torch.arange(6.0).view(1, 6, 1), 4, 0, None, first=2)
    assert medoids.tolist() == [[2, 5, 0, 1]]


@pytest.mark.parametrize("method", [DpcKnn(), DpcKnn(weights="equal"), KMedoids(weights="equal"), KMedoids()], ids=str)
@pytest.mark.parametrize("prefix", [0, 2, 5])
@pytest.mark.parametrize("dropped", [1, 10])
def test_equal_tokens_fill_every_cluster(method: Method, prefix: int, dropped: int) -> None:
    """Copies of one token tie in everything: centres stay different tokens, and none has an empty cluster."""
    x = torch.ones(2, prefix + 11, 4)
    view = LayerView(x, prefix, scores=torch.full(x.shape[:2], 0.1))
    reduction = method.reduce(view, prefix + 11 - dropped)
    assert reduction.kept is not None
    assert all(row.unique().numel() == row.numel() for row in reduction.kept)
    assert bool((reduction.sizes >= 1).all())
    assert reduction.sizes.sum(1).tolist() == [prefix + 11.0] * 2
    torch.testing.assert_close(reduction.down(x), torch.ones_like(reduction.down(x)))


def test_sizes_weigh_and_add_up() -> None:
    x, point = _blobs(1, 2, 3)
    sizes = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]])
    reduction = DpcKnn(3).reduce(LayerView(x, 0, sizes), 2)
    own = reduction.matrix()[0, reduction.index[0, 0]]
    assert sorted(reduction.sizes[0].tolist()) == [9.0, 12.0]
    torch.testing.assert_close(own, torch.where(point == 0, sizes[0] / 9.0, 0.0))
    assert sorted(KMedoids(weights="equal").reduce(LayerView(x, 0, sizes), 2).sizes[0].tolist()) == [9.0, 12.0]


def test_medoids_come_back_by_their_clusters() -> None:
    x, point = _blobs(2)
    reduction = KMedoids().reduce(LayerView(x, 0, scores=torch.arange(20.0, 0.0, -1.0).expand(2, -1)), 4)
    assert torch.equal(reduction.up(reduction.down(x)).argmax(-1), point.expand(2, -1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DpcKnn(neighbours=0), "neighbours .*at least 1, got 0"),
        (lambda: DpcKnn(weights="half"), "weights must be one of equal, sizes, class, got 'half'"),  # type: ignore[arg-type]
        (lambda: KMedoids(iterations=-1), "iterations must be at least 0, got -1"),
        (lambda: KMedoids(weights="sizes"), "weights must be one of equal, class, got 'sizes'"),  # type: ignore[arg-type]
        (lambda: KMedoids(first=-1), "first .*at least 0, got -1"),
        (lambda: KMedoids(weights="equal", first=8).reduce(LayerView(torch.randn(1, 9, 3), 1), 3), "first .*8.*are 8"),
        (lambda: Sinkhorn(torch.randn(4)), r"centers must be \(m, C\)"),
        (lambda: Sinkhorn(torch.randn(4, 3), eps=0.0), "eps must be positive"),
        (lambda: Sinkhorn(torch.randn(4, 3), iterations=0), "iterations must be at least 1"),
        (lambda: PatchMerger(torch.randn(4)), r"queries must be \(m, C\)"),
        (lambda: PatchMerger(torch.randn(4, 3), eps=0.0), "eps must be positive"),
    ],
)
def test_bad_options_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (5, 5)])
def test_transport_converges_to_its_marginals(shape: tuple[int, int]) -> None:
    plan = transport(torch.randn(2, *shape), 0.7, 50)
    torch.testing.assert_close(plan.sum(1), torch.ones(2, shape[1]), atol=1e-4, rtol=0)
    torch.testing.assert_close(plan.sum(2), torch.full((2, shape[0]), shape[1] / shape[0]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("prefix", [0, 2])
@pytest.mark.parametrize("name", LEARNED)
def test_learned_methods_have_their_own_number_of_tokens(name: str, prefix: int) -> None:
    x = torch.randn(3, prefix + 20, 48)
    reduction = LEARNED[name]().reduce(LayerView(x, prefix), prefix + 3)
    y, weights = reduction.down(x), reduction.matrix()
    assert y.shape == (3, prefix + 7, 48)
    assert torch.equal(y[:, :prefix], x[:, :prefix])
    torch.testing.assert_close(y, weights @ x)
    torch.testing.assert_close(reduction.spread(y)[:, :prefix], x[:, :prefix])
    if name == "sit":
        torch.testing.assert_close(weights.sum(2), torch.ones(3, prefix + 7))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", LEARNED)
def test_learned_methods_take_half_precision(name: str, dtype: torch.dtype) -> None:
    x, method = torch.randn(2, 20, 48), LEARNED[name]()
    expected = method.reduce(LayerView(x, 1), 4).down(x)
    half = method.reduce(LayerView(x.to(dtype), 1), 4).down(x.to(dtype))
    assert half.dtype == dtype
    torch.testing.assert_close(half.float(), expected, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("name", LEARNED)
def test_learned_methods_run_on_a_model_and_learn(
    name: str, tiny: Callable[..., VisionTransformer], images: Callable[..., Tensor]
) -> None:
    method = LEARNED[name]()
    learned = _parameters(method)
    model = ttf.apply(tiny(), method, schedule=Counts(((5, 7),)))
    out = model(images())
    assert ttf.trace(model, images())[0].W.shape == (2, 8, 65)
    out.square().sum().backward()
    assert all(value.grad is not None and bool(torch.isfinite(value.grad).all()) for value in learned)
    assert any(value.grad.count_nonzero() > 0 for value in learned)


def test_patch_merger_on_a_model_equals_its_normalised_tokens(
    tiny: Callable[..., VisionTransformer], images: Callable[..., Tensor]
) -> None:
    """The channel mean by which the tokens differ from the paper's is invisible behind LayerNorms."""
    model, queries, x = tiny(), torch.randn(7, 48), images()
    tokens = model.norm_pre(model._pos_embed(model.patch_embed(x)))
    for number, block in enumerate(model.blocks):
        if number == 5:
            tokens = tokens + block.attn(block.norm1(tokens))
            tokens = torch.cat((tokens[:, :1], merge_patches(tokens[:, 1:], queries, False)), dim=1)
            tokens = tokens + block.mlp(block.norm2(tokens))
        else:
            tokens = block(tokens)
    expected = model.forward_head(model.norm(tokens))
    ttf.apply(model, PatchMerger(queries), schedule=Counts(((5, 7),)))
    torch.testing.assert_close(model(x), expected, atol=1e-4, rtol=1e-4)
