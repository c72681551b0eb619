"""ToMe, PPT and DiffRate where the reference data does not look: other prefixes, limits, ties, wrong options."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import ttf
from ttf.methods.base import LayerView, Method
from ttf.methods.diffrate import DiffRate, from_counts, published
from ttf.methods.ppt import PPT
from ttf.methods.tome import ToMe
from ttf.ops.bipartite import bipartite_matching, kth_matching
from ttf.ops.scores import value_weighted_scores
from ttf.schedule import RemovePerBlock

METHODS = [ToMe(), PPT(1e-4), PPT(mode="pool"), PPT(mode="prune"), DiffRate(), DiffRate((15, 9))]


def _view(tokens: int, prefix: int, batch: int = 3, **changes: object) -> LayerView:
    x, keys = torch.randn(batch, tokens, 12), torch.randn(batch, tokens, 8)
    scores, norms = torch.rand(batch, tokens), 1 + torch.rand(batch, tokens)
    sizes = torch.randint(1, 5, (batch, tokens)).float()
    fields = {"sizes": sizes, "scores": scores, "keys": keys, "value_norms": norms, **changes}
    return LayerView(x, prefix, **fields)  # type: ignore[arg-type]


def _image(view: LayerView, number: int) -> LayerView:
    names = ("x", "sizes", "scores", "keys", "value_norms")
    return LayerView(prefix=view.prefix, **{name: getattr(view, name)[number : number + 1] for name in names})


@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
@pytest.mark.parametrize("tokens", [16, 17])
@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_prefix_tokens_stay_in_front_and_to_themselves(method: Method, tokens: int, prefix: int) -> None:
    view = _view(tokens, prefix)
    lowest = tokens - (tokens - prefix) // 2
    for keep in {prefix + 1, lowest, tokens - 1}:
        reduction = method.reduce(view, keep)
        wanted = max(keep, lowest)
        if isinstance(method, DiffRate):
            wanted = min(keep, (method.prune_kept or (tokens,))[0])
        assert reduction.sizes.shape == (3, wanted)
        matrix = reduction.matrix()
        assert torch.equal(matrix[:, :prefix], torch.eye(tokens)[:prefix].expand(3, -1, -1))
        assert not matrix[:, prefix:, :prefix].any()
        torch.testing.assert_close(matrix.sum(-1), torch.ones_like(reduction.sizes))
        assert (matrix.gather(2, reduction.kept.unsqueeze(-1)) > 0).all()


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_a_batch_is_its_images_one_by_one(method: Method) -> None:
    view = _view(20, 1)
    together = method.reduce(view, 13)
    for number in range(3):
        alone = method.reduce(_image(view, number), 13)
        assert torch.equal(together.matrix()[number], alone.matrix()[0])
        assert torch.equal(together.sizes[number], alone.sizes[0])


@pytest.mark.parametrize("method", METHODS, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_decides_in_float32(method: Method, dtype: torch.dtype) -> None:
    view = _view(20, 1, keys=torch.randn(3, 20, 8).to(dtype))
    view = LayerView(**{**view.__dict__, "x": view.x.to(dtype)})
    whole = LayerView(**{**view.__dict__, "x": view.x.float(), "keys": view.keys.float()})
    reduction = method.reduce(view, 13)
    assert reduction.sizes.dtype == torch.float32 and reduction.down(view.x).dtype == dtype
    assert torch.equal(reduction.matrix(), method.reduce(whole, 13).matrix())


@pytest.mark.parametrize("prefix", [0, 2, 5])
def test_tome_order(prefix: int) -> None:
    """Prefix, even positions (ascending, without a prefix by similarity), odd positions."""
    keys = torch.nn.functional.normalize(torch.randn(1, 15, 4), dim=-1)
    matching = bipartite_matching(keys, 3, prefix)
    even, odd = range(prefix + prefix % 2, 15, 2), list(range(prefix | 1, 15, 2))
    best = {i: float((keys[0, odd] @ keys[0, i]).max()) for i in even}
    ranked = sorted(even, key=best.__getitem__, reverse=True)
    alone = sorted(ranked[3:]) if prefix else ranked[3:]
    assert matching.source.tolist() == [ranked[:3]]
    assert matching.kept.tolist() == [[*range(prefix), *alone, *odd]]


def test_tome_ties_go_to_the_first() -> None:
    same = torch.ones(1, 7, 1)
    reduction = ToMe().reduce(LayerView(same, 1, keys=same), 5)
    assert reduction.index.tolist() == [[0, 2, 2, 3, 2, 4, 1]]
    assert reduction.sizes.tolist() == [[1, 1, 3, 1, 1]]


def test_tome_merges_nothing_where_nothing_is_asked_for() -> None:
    assert bipartite_matching(torch.randn(2, 9, 3), 0).places(9).tolist() == [list(range(9))] * 2


def test_tome_of_empty_and_padding_tokens_is_finite() -> None:
    view = _view(12, 1, keys=torch.zeros(3, 12, 8), sizes=torch.zeros(3, 12))
    assert ToMe().reduce(view, 7).down(view.x).isfinite().all()


@pytest.mark.parametrize("k", [1, 10])
def test_kth_out_of_range(k: int) -> None:
    with pytest.raises(ValueError, match="from 2 to 9"):
        kth_matching(torch.randn(1, 9, 3), k)


def test_ppt_decides_for_every_image() -> None:
    flat, steep = torch.ones(1, 17), torch.cat((torch.ones(1, 1), torch.arange(16.0).unsqueeze(0)), dim=1)
    view = _view(17, 1, batch=2, scores=torch.cat((flat, steep)), value_norms=torch.ones(2, 17))
    reduction = PPT(1e-4).reduce(view, 11)
    assert (reduction.index >= 0).all(dim=1).tolist() == [True, False]
    assert reduction.kept[1].tolist() == [0, *range(16, 6, -1)]
    assert torch.equal(reduction.matrix()[0], ToMe().reduce(view, 11).matrix()[0])


def test_ppt_reads_what_its_mode_needs() -> None:
    assert PPT(mode="pool").wanted == ToMe().wanted
    assert not PPT(mode="prune").wanted.keys and PPT().wanted.keys and PPT().wanted.value_norms


def test_scores_are_shares() -> None:
    scores = value_weighted_scores(torch.rand(2, 9).half(), torch.rand(2, 9).half(), 2)
    assert scores.dtype == torch.float32 and scores.shape == (2, 7)
    torch.testing.assert_close(scores.sum(1), torch.ones(2))


def _opposite() -> LayerView:
    """A class token, one token, and one that points the other way."""
    x = torch.tensor([[[1.0, 1.0], [1.0, 0.0], [-1.0, 0.0]]])
    return LayerView(x, 1, scores=torch.tensor([[0.5, 0.3, 0.2]]), sizes=torch.tensor([[1.0, 1.0, 3.0]]))


def test_diffrate_sizes_fall_but_stay_positive(tiny, images) -> None:
    reduction = DiffRate().reduce(_opposite(), 2)  # 1 - 3 by definition, and attention takes the logarithm
    assert reduction.sizes.tolist() == [[1.0, pytest.approx(1e-6)]]
    assert reduction.matrix().tolist() == [[[1.0, 0.0, 0.0], [0.0, 0.5, 0.5]]]
    with ttf.applied(tiny(), DiffRate(), schedule=RemovePerBlock(20)) as model:
        assert model(images()).isfinite().all()


def test_diffrate_prunes_in_its_own_blocks_only() -> None:
    kept = [DiffRate((20, 6)).reduce(_view(20, 1, block=block), 11).index for block in range(3)]
    assert [int((index >= 0).sum(1).max()) for index in kept] == [20, 6, 20]


def test_diffrate_counts_reach_the_model(tiny, images) -> None:
    """Pruning alone, merging alone, both, counts above what is there, and pruning to fewer than merging."""
    prune, merge = [65, 60, 60, 50, 70, 30], [65, 60, 55, 45, 70, 40]
    method, schedule = from_counts(prune, merge)
    with ttf.applied(tiny(), method, schedule=schedule) as model:
        layers = ttf.trace(model, images())
    assert {layer.block: layer.W.shape[1] for layer in layers} == {1: 60, 2: 55, 3: 45, 5: 30}
    dropped = {layer.block: int((layer.W.sum(1) == 0).sum(1).max()) for layer in layers}
    assert dropped == {1: 5, 2: 0, 3: 5, 5: 15}


def test_published_counts() -> None:
    method, schedule = published("ViT-S-DeiT", 2.9)
    assert method.prune_kept is not None and method.prune_kept[:3] == (197, 196, 190)
    assert [schedule.kept(block, 196) for block in (0, 1, 11)] == [196, 193, 2]
    method, schedule = published("ViT-H-MAE", 83.7)
    assert schedule.kept(17, 102) == 99  # pruning leaves fewer than merging


@pytest.mark.parametrize(("model", "target", "valid"), [("DeiT", 2.9, "ViT-S-DeiT"), ("ViT-S-DeiT", 3, "2.3, 2.5")])
def test_what_is_not_published_lists_what_is(model: str, target: float, valid: str) -> None:
    with pytest.raises(ValueError, match=valid):
        published(model, target)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PPT(-1.0), "threshold .* >= 0"),
        (lambda: PPT(float("nan")), "threshold .* >= 0"),
        (lambda: PPT(mode="merge"), "mixed, pool, prune"),  # type: ignore[arg-type]
        (lambda: DiffRate((197, 1)), "at least 2"),
        (lambda: from_counts([9, 5], [9]), "2 blocks, merge_kept for 1"),
    ],
)
def test_wrong_options(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.slow
@pytest.mark.parametrize("method", [ToMe(), PPT(1e-4), DiffRate((60, 50, 40))], ids=repr)
def test_compiles_without_a_break(method: Method, tiny, images) -> None:
    with ttf.applied(tiny(depth=3), method, schedule=RemovePerBlock(9)) as model, torch.inference_mode():
        expected: Tensor = model(images())
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(images()), expected, atol=1e-4, rtol=1e-4)
