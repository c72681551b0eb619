"""MCTF, PiToMe, ToFu, ATC, ALGM, VisionZip and DivPrune where the reference data does not look."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from torch import Tensor
from torch.nn import functional as F

import ttf
from ttf.methods import LayerView, Method, build
from ttf.methods.algm import ALGM, windows_of
from ttf.methods.atc import ATC
from ttf.methods.divprune import DivPrune, diverse
from ttf.methods.mctf import MCTF
from ttf.methods.pitome import PiToMe
from ttf.methods.tofu import ToFu
from ttf.methods.visionzip import VisionZip
from ttf.ops.clustering import agglomerate
from ttf.schedule import RemovePerBlock

METHODS = [MCTF(fewest=2), MCTF(bidirectional=False), PiToMe(), PiToMe(unprotected="none"), ToFu("mean"), ToFu("prune")]


def _view(tokens: int, prefix: int = 1, batch: int = 3, **changes: Any) -> LayerView:
    x, keys = torch.randn(batch, tokens, 12), torch.randn(batch, tokens, 8)
    scores, sizes = torch.rand(batch, tokens) + 0.1, torch.randint(1, 5, (batch, tokens)).float()
    sizes[:, :prefix] = 1.0
    return LayerView(**{"x": x, "prefix": prefix, "sizes": sizes, "scores": scores, "keys": keys, **changes})


@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
@pytest.mark.parametrize("tokens", [16, 17])
@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_prefix_tokens_stay_in_front_and_to_themselves(method: Method, tokens: int, prefix: int) -> None:
    view, lowest = _view(tokens, prefix), tokens - (tokens - prefix) // 2
    for keep in {prefix + 1, lowest, tokens - 1}:
        reduction = method.reduce(view, keep)
        assert reduction.sizes.shape == (3, max(keep, lowest, getattr(method, "fewest", 0)))
        matrix = reduction.matrix()
        assert torch.equal(matrix[:, :prefix], torch.eye(tokens)[:prefix].expand(3, -1, -1))
        assert not matrix[:, prefix:, :prefix].any()
        torch.testing.assert_close(matrix.sum(-1), torch.ones_like(reduction.sizes))
        assert reduction.kept is not None and (matrix.gather(2, reduction.kept.unsqueeze(-1)) > 0).all()


def _fused_by_hand(view: LayerView, r: int) -> tuple[list[set[int]], Tensor]:
    """The groups of one image, and the score matrix, from the definition one pair after the other."""
    x, p = view.x[0].double(), view.prefix
    u, t = 1 / view.scores[0].double(), 1 / view.sizes[0].double()
    u, t = u / u.max(), t / t.max()
    score = {
        (i, j): float(
            ((F.cosine_similarity(x[i], x[j], 0) + 1) / 2) * (u[i] * u[j]) ** (1 / 20) * (t[i] * t[j]) ** (1 / 40)
        )
        for i in range(0, len(x), 2)
        for j in range(1, len(x), 2)
        if i >= p and j >= p
    }
    even, odd = sorted({i for i, _ in score}), sorted({j for _, j in score})
    groups = {token: {token} for token in range(len(x))}
    best = {i: max(odd, key=lambda j: score[i, j]) for i in even}
    for i in sorted(even, key=lambda i: -score[i, best[i]])[: r // 2]:
        groups[best[i]] |= groups.pop(i)
    left = [i for i in even if i in groups]
    host = {j: max(left, key=lambda i: score[i, j]) for j in odd}
    for j in sorted(odd, key=lambda j: -score[host[j], j])[: r - r // 2]:
        groups[host[j]] |= groups.pop(j)
    return list(groups.values()), view.scores[0].double() * view.sizes[0].double()


@pytest.mark.parametrize("prefix", [0, 1, 2, 3])
@pytest.mark.parametrize("r", [1, 2, 7, 9])
def test_mctf_fuses_as_defined(prefix: int, r: int) -> None:
    view = _view(23, prefix, batch=1)
    groups, masses = _fused_by_hand(view, r)
    reduction = MCTF().reduce(view, 23 - r)
    matrix = reduction.matrix()[0]
    assert sorted(map(sorted, groups)) == sorted(row.nonzero().flatten().tolist() for row in matrix)
    for row, size in zip(matrix, reduction.sizes[0], strict=True):
        members = row.nonzero().flatten()
        torch.testing.assert_close(row[members].double(), masses[members] / masses[members].sum(), atol=1e-5, rtol=0)
        assert float(size) == float(view.sizes[0, members].sum())


def test_mctf_leaves_ten_tokens() -> None:
    assert MCTF().reduce(_view(13), 3).sizes.shape[1] == 10
    view = _view(9)
    assert torch.equal(MCTF().reduce(view, 5).down(view.x), view.x)


def test_mctf_reads_what_its_factors_need() -> None:
    assert MCTF().wanted.score_rows == "all"
    assert MCTF(tau_information=0.0, weights="sizes").wanted.score_rows is None
    assert not MCTF().at_entrance and MCTF(place="entrance").at_entrance


def test_pitome_merges_what_many_tokens_are_like() -> None:
    """Six copies of one key among others that differ: half of them go, whoever else stays."""
    keys = torch.eye(15).unsqueeze(0).clone()
    keys[0, 4:10] = keys[0, 4]
    view = LayerView(torch.randn(1, 15, 4), 1, keys=keys)
    index = PiToMe(unprotected="none").reduce(view, 12).index[0]
    assert len(set(index[4:10].tolist())) == 3 and len(set(index.tolist())) == 12


def test_pitome_and_tofu_follow_the_block() -> None:
    method = PiToMe()
    assert [method.protects(block, 5) for block in range(5)] == [False, False, False, True, True]
    assert [round(method.margin_of(block, 5), 2) for block in range(5)] == [0.75, 0.6, 0.45, 0.3, 0.15]
    assert [ToFu().mode_of(block, 5) for block in range(5)] == ["prune"] * 3 + ["longest"] * 2


def test_methods_know_the_depth_of_the_model(tiny: Any, images: Any) -> None:
    """Of 4 blocks ToFu merges in the last alone; elsewhere it prunes."""
    with ttf.applied(tiny(depth=4), ToFu(), schedule=RemovePerBlock(5)) as model:
        dropped = [bool((layer.W.sum(1) == 0).any()) for layer in ttf.trace(model, images())]
    assert dropped == [True, True, True, False]


def test_tofu_is_as_long_as_its_longest() -> None:
    x = torch.tensor([[[1.0, 0.0], [3.0, 0.0], [0.0, 1.0]]])
    view = LayerView(x, 0, keys=torch.tensor([[[1.0, 0.0], [1.0, 0.1], [-1.0, 0.0]]]))
    reduction = ToFu("longest").reduce(view, 2)
    assert reduction.matrix().tolist() == [[[0, 0, 1], [0.5, 0.5, 0]]]
    view = LayerView(x.flip(1), 0, keys=view.keys.flip(1))
    assert ToFu("longest").reduce(view, 2).matrix().tolist() == [[[1, 0, 0], [0, 0.5, 0.5]]]
    view = LayerView(x[:, [1, 0, 2]], 0, keys=view.keys.flip(1)[:, [1, 0, 2]])
    assert ToFu("longest").reduce(view, 2).matrix().tolist() == [[[0, 0, 1], [1.5, 1.5, 0]]]


@pytest.mark.parametrize("kind", ["average", "complete", "single"])
@pytest.mark.parametrize("clusters", [1, 4, 11, 20])
def test_clusters_are_those_of_scipy(kind: Any, clusters: int) -> None:
    points = torch.randn(3, 20, 5)
    between = torch.cdist(points, points)
    upper = torch.triu_indices(20, 20, 1)
    for image, labels in zip(between, agglomerate(between, clusters, kind), strict=True):
        theirs = fcluster(linkage(image[upper[0], upper[1]].numpy(), kind), clusters, "maxclust")
        assert len(set(zip(labels.tolist(), theirs.tolist(), strict=True))) == clusters
        firsts = [labels.tolist().index(label) for label in range(clusters)]
        assert firsts == sorted(firsts)


def test_windows_of_a_grid_that_they_do_not_divide() -> None:
    assert windows_of((3, 5), 2, torch.device("cpu")).tolist() == [[0, 1, 5, 6], [2, 3, 7, 8]]
    view = _view(16, grid=(3, 5))
    reduction = ALGM(-1.0).reduce(view, 2)
    assert reduction.sizes.shape[1] == 1 + 2 + 7
    assert reduction.kept[:, 3:].tolist() == [[5, 10, 11, 12, 13, 14, 15]] * 3
    torch.testing.assert_close(reduction.sizes.sum(1), view.sizes.sum(1))


def test_algm_counts_by_the_batch_and_keeps_what_it_is_told() -> None:
    x = torch.randn(2, 17, 8)
    x[0, 1:] = x[0, 1] + 1e-3 * torch.randn(16, 8)  # one image of tokens that are alike, one of others
    view = LayerView(x, 1, grid=(4, 4))
    assert ALGM().reduce(view, 2).sizes.shape[1] == 17
    alone = LayerView(x[:1], 1, grid=(4, 4))
    assert ALGM().reduce(alone, 2).sizes.shape[1] == 1 + 4
    assert ALGM().reduce(alone, 11).sizes.shape[1] == 11  # two windows
    later = LayerView(x, 1, block=4)
    r = 17 - ALGM().reduce(later, 2).sizes.shape[1]
    best = F.normalize(x[:, 2::2], dim=-1) @ F.normalize(x[:, 1::2], dim=-1).transpose(1, 2)
    best = best.amax(2)
    assert r == int((best >= best.mean() + best.std(1).mean() / 5).sum(1).min())
    with pytest.raises(ValueError, match="lie on a grid"):
        ALGM().reduce(LayerView(x, 1), 2)


def test_diverse_tokens_are_those_of_a_loop() -> None:
    x = torch.randn(2, 15, 4)
    for image, chosen in zip(x, diverse(x, 6), strict=True):
        apart = (1 - F.cosine_similarity(image[:, None], image[None], dim=-1)).double()
        rest = apart + 9 * torch.eye(15)
        picks = [int(rest.amin(1).argmax())]
        while len(picks) < 6:
            left = [j for j in range(15) if j not in picks]
            picks.append(max(left, key=lambda j: float(apart[j, picks].min())))
        assert chosen.tolist() == picks
    assert DivPrune().reduce(_view(9, 2), 5).kept[:, :2].tolist() == [[0, 1]] * 3


@pytest.mark.parametrize(("keep", "contextual"), [(8, 3), (3, 1), (2, 0)])
def test_visionzip_takes_at_most_half_for_contextual_tokens(keep: int, contextual: int) -> None:
    view = _view(14)
    reduction = VisionZip(3).reduce(view, keep)
    sums = reduction.matrix().sum(2)
    assert sums.shape == (3, keep) and torch.equal(sums[:, : keep - contextual], torch.ones(3, keep - contextual))
    everything = reduction.matrix().sum(1) > 0
    assert bool(everything.all()) == (contextual > 0)
    best = view.scores[:, 1:].topk(keep - 1 - contextual).indices.sort(1).values + 1
    assert torch.equal(reduction.kept[:, 1 : keep - contextual], best)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mctf", {"tau_size": -1.0}, "every tau"),
        ("mctf", {"weights": "none"}, "attention, sizes, equal"),
        ("mctf", {"place": "front"}, "between, entrance"),
        ("mctf", {"fewest": 0}, "at least 1"),
        ("pitome", {"unprotected": "half"}, "first, last, all, none"),
        ("tofu", {"mode": "sum"}, "mixed, prune, mean, longest"),
        ("atc", {"linkage": "ward"}, "average, complete, single"),
        ("algm", {"threshold": 2.0}, "cosine"),
        ("algm", {"window": 1}, "at least 2"),
        ("visionzip", {"contextual": -1}, "at least 0"),
    ],
)
def test_wrong_options(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(name, **options)


@pytest.mark.slow
@pytest.mark.parametrize("method", [MCTF(), PiToMe(), ToFu(), ATC(), DivPrune(), VisionZip(4)], ids=repr)
def test_compiles_without_a_break(method: Method, tiny: Any, images: Any) -> None:
    torch.compiler.reset()  # what other tests compiled counts against dynamo's limit
    schedule = RemovePerBlock(5, (1,))
    with ttf.applied(tiny(depth=2), method, schedule=schedule) as model, torch.inference_mode():
        expected: Tensor = model(images())
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(images()), expected, atol=1e-4, rtol=1e-4)
