"""The clustering and learned methods of TokenReduction against its official modules."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.golden import margins
from tests.golden.blocks import TOKEN, WEIGHT, Case
from ttf.methods import LayerView, Method
from ttf.methods.dpc_knn import DpcKnn, cluster_tokens
from ttf.methods.k_medoids import KMedoids, k_medoids
from ttf.methods.patch_merger import PatchMerger, merge_patches, query_attention
from ttf.methods.sinkhorn import Sinkhorn, transport, transport_to
from ttf.methods.sit import SiT, slimming_network, slimming_weights
from ttf.ops.reduction import Reduction, gather_tokens


def _with_class(case: Case, scores: Tensor | None = None) -> LayerView:
    """The case's tokens as patches behind a class token, as on a host."""
    x = F.pad(case["x"], (0, 0, 1, 0), value=0.5)
    return LayerView(x, 1, scores=None if scores is None else F.pad(scores, (1, 0), value=0.3))


def _patch_rows(reduction: Reduction) -> Tensor:
    """W without the class token's row and column, which are checked to be those of the identity."""
    matrix = reduction.matrix()
    assert bool((matrix[:, 0, 0] == 1).all())
    assert matrix[:, 0].count_nonzero() == matrix[:, :, 0].count_nonzero() == matrix.shape[0]
    return matrix[:, 1:, 1:]


def _check_down(case: Case, method: Method, expected: str) -> None:
    """The new tokens behind a class token."""
    view = _with_class(case)
    down = method.reduce(view, 1 + case["W"].shape[1]).down(view.x)
    assert torch.equal(down[:, :1], view.x[:, :1])
    torch.testing.assert_close(down[:, 1:], case[expected], **TOKEN)


def _assert_nearest_clear(between: Tensor, centres: Tensor) -> None:
    """The nearest centre of every token that is none itself."""
    squares = gather_tokens(between, centres).square().transpose(1, 2)
    gaps = margins.runner_up(-squares).scatter(1, centres, torch.inf)
    margins.assert_clear(gaps, margins.DISTANCE * squares.amax())


def _dpcknn_clear(case: Case) -> None:
    """Which token is denser, the order of the centres, and the clusters."""
    between = margins.distances(case["x"], case["x"]) / case["x"].shape[2] ** 0.5
    noise = margins.DISTANCE * between.square().amax()
    density = -between.topk(case.settings["k"], dim=2, largest=False).values.square().mean(dim=2)
    denser = density.unsqueeze(1) > density.unsqueeze(2)
    apart = torch.where(denser, between, between.amax(dim=(1, 2), keepdim=True)).amin(dim=2)
    margins.assert_clear(margins.order(density), noise)
    margins.assert_clear(margins.order(density + apart.log(), case.settings["clusters"]), noise)
    _assert_nearest_clear(between, case["centers"])


def dpcknn(case: Case) -> None:
    _dpcknn_clear(case)
    settings, weights = case.settings, case["token_weight"].squeeze(-1)
    centres, clusters = cluster_tokens(case["x"], settings["clusters"], settings["k"])
    assert torch.equal(centres, case["centers"])
    assert torch.equal(clusters, case["idx_cluster"])
    bare = DpcKnn(settings["k"]).reduce(LayerView(case["x"], 0, weights), settings["clusters"])
    behind = DpcKnn(settings["k"], "class").reduce(_with_class(case, weights), 1 + settings["clusters"])
    assert torch.equal(bare.kept, case["centers"])
    assert torch.equal(behind.kept[:, 1:] - 1, case["centers"])
    torch.testing.assert_close(bare.matrix(), case["W"], **WEIGHT)
    torch.testing.assert_close(_patch_rows(behind), case["W"], **WEIGHT)
    torch.testing.assert_close(bare.down(case["x"]), case["y"], **TOKEN)


def _first_medoids(case: Case, between: Tensor) -> Tensor:
    """Those of the highest weights, or tokens that are far from each other; (B, m) int64."""
    m, weights = case.settings["clusters"], case["token_weight"].squeeze(-1)
    if case.settings["weighted"]:
        margins.assert_clear(margins.order(weights, m), 0.0)  # given, and not off by any rounding
        return weights.argsort(dim=1, descending=True)[:, :m]
    medoids = torch.full((len(between), 1), case.settings["first_index"] or 0)
    while medoids.shape[1] < m:
        far = gather_tokens(between, medoids).amax(dim=1).scatter(1, medoids, -1.0)
        margins.assert_clear(margins.runner_up(far.square()), margins.DISTANCE * between.square().amax())
        medoids = torch.cat((medoids, far.argmax(dim=1, keepdim=True)), dim=1)
    return medoids


def _kmedoids_clear(case: Case) -> None:
    """The first medoids, and in every iteration the clusters and the member of the lowest cost."""
    between = margins.distances(case["x"], case["x"])
    medoids, cost = _first_medoids(case, between), between.sum(dim=2)
    cost = cost * case["token_weight"].squeeze(-1) if case.settings["weighted"] else cost
    for _ in range(case.settings["iterations"]):
        _assert_nearest_clear(between, medoids)
        others = gather_tokens(between, medoids).argmin(dim=1).unsqueeze(1) != torch.arange(medoids.shape[1])[:, None]
        members = (-cost.log()).unsqueeze(1).masked_fill(others, -torch.inf)
        margins.assert_clear(margins.runner_up(members), margins.COST)
        medoids = members.argmax(dim=2)
    _assert_nearest_clear(between, medoids)
    assert torch.equal(medoids, case["center_idx"])


def kmedoids(case: Case) -> None:
    _kmedoids_clear(case)
    settings = case.settings
    weights = case["token_weight"].squeeze(-1) if settings["weighted"] else None
    rule = (settings["iterations"], "equal" if weights is None else "class", settings["first_index"] or 0)
    medoids, clusters = k_medoids(case["x"], settings["clusters"], rule[0], weights, rule[2])
    assert torch.equal(medoids, case["center_idx"])
    assert torch.equal(clusters, case["assignment"])
    view = _with_class(case, weights)
    reduction = KMedoids(*rule).reduce(view, 1 + settings["clusters"])
    assert torch.equal(reduction.kept[:, 1:] - 1, case["center_idx"])
    assert torch.equal(reduction.nearest[:, 1:] - 1, case["assignment"])
    torch.testing.assert_close(reduction.down(view.x)[:, 1:], case["centers"], **TOKEN)


def sinkhorn(case: Case) -> None:
    settings, x = case.settings, case["x"]
    rule = (float(settings["eps"]), settings["iterations"])
    torch.testing.assert_close(transport(case["scores"], *rule), case["transport"], **WEIGHT)
    torch.testing.assert_close(transport_to(x, case["centers"], *rule), case["W"], **WEIGHT)
    method = Sinkhorn(case["centers"], *rule)
    rows = _patch_rows(method.reduce(_with_class(case), 1 + settings["clusters"]))
    torch.testing.assert_close(rows * x.norm(dim=-1).unsqueeze(1), case["W"], **WEIGHT)
    _check_down(case, method, "y")


def patchmerger(case: Case) -> None:
    settings, x = case.settings, case["x"]
    rule = (case["queries"], settings["scaled_attention"], settings["layernorm_eps"])
    torch.testing.assert_close(query_attention(x, *rule), case["W"], **WEIGHT)
    torch.testing.assert_close(merge_patches(x, *rule), case["y"], **TOKEN)
    view = _with_class(case)
    down = PatchMerger(*rule).reduce(view, 1 + settings["queries"]).down(view.x)[:, 1:]
    torch.testing.assert_close(down - down.mean(dim=-1, keepdim=True), case["y"], **TOKEN)


def sit(case: Case) -> None:
    weights = {key.removeprefix("weight."): value for key, value in case.group("weights").items()}
    scale, hidden = weights.pop("scale"), weights["1.weight"]
    network = slimming_network(hidden.shape[1], hidden.shape[0], case.settings["queries"])
    network.load_state_dict(weights)
    network[0].eps = case.settings["layernorm_eps"]
    network.requires_grad_(False)
    torch.testing.assert_close(slimming_weights(case["x"], network, scale), case["W"], **WEIGHT)
    method = SiT(network, scale)
    rows = _patch_rows(method.reduce(_with_class(case), 1 + case.settings["queries"]))
    torch.testing.assert_close(rows, case["W"], **WEIGHT)
    _check_down(case, method, "y")


CHECKS = {"dpcknn": dpcknn, "kmedoids": kmedoids, "sinkhorn": sinkhorn, "patchmerger": patchmerger, "sit": sit}
