"""ToMe against its official operators, blocks and schedules."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.golden import margins
from tests.golden.blocks import TOKEN, WEIGHT, Case, run_block
from ttf.methods.base import LayerView
from ttf.methods.tome import ToMe
from ttf.ops.bipartite import bipartite_matching, group_sums, kth_matching, mean_weights, merge_by_size
from ttf.ops.reduction import AssignmentReduction, gather_tokens
from ttf.schedule import RemovePerBlock


def _plain(index: Tensor, new: int, mean: bool) -> AssignmentReduction:
    """Sums or plain means over the groups of an index (B, N)."""
    ones = torch.ones_like(index, dtype=torch.float32)
    sizes = group_sums(index, ones, new)
    return AssignmentReduction(sizes=sizes, index=index, weight=mean_weights(index, ones, sizes) if mean else ones)


def _source(reduction: AssignmentReduction) -> Tensor:
    return (reduction.matrix() > 0).float()


def op(case: Case) -> None:
    settings, x, keys = case.settings, case["x"], case["keys"].mean(dim=1)
    tokens, prefix = x.shape[1], int(settings["class_token"]) + int(settings["distill_token"])
    torch.testing.assert_close(keys, case["metric"], **WEIGHT)
    margins.assert_clear(margins.matching(case["metric"], settings["r_effective"], prefix), margins.COSINE)
    for metric in (keys, case["metric"]):
        view = LayerView(x, prefix, sizes=case["size_in"].squeeze(-1), keys=metric)
        reduction = ToMe().reduce(view, tokens - settings["r"])
        assert reduction.sizes.shape[1] == tokens - settings["r_effective"]
        assert torch.equal(_source(reduction), case["source"])
        torch.testing.assert_close(reduction.matrix(), case["W"], **WEIGHT)
        torch.testing.assert_close(reduction.sizes, case["size_out"].squeeze(-1), **WEIGHT)
        torch.testing.assert_close(reduction.down(x), case["y_wavg"], **TOKEN)
    for mean, name in ((True, "y_mean"), (False, "y_sum")):
        plain = _plain(reduction.index, reduction.sizes.shape[1], mean)
        torch.testing.assert_close(plain.down(x), case[name], **TOKEN)
    if not settings["distill_token"]:  # the official way back forgets the order of a distillation token
        torch.testing.assert_close(reduction.up(reduction.down(x)), case["unmerged"], **TOKEN)


def two(case: Case) -> None:
    prefix, sizes, total = int(case.settings["class_token"]), None, None
    for step, x in ((1, case["x"]), (2, case["x_before2"])):
        metric = case[f"metric{step}"]
        margins.assert_clear(margins.matching(metric, case.settings[f"r{step}"], prefix), margins.COSINE)
        matching = bipartite_matching(metric, case.settings[f"r{step}"], prefix)
        reduction = merge_by_size(matching.places(x.shape[1]), matching.kept, sizes)
        matrix, sizes = reduction.matrix(), reduction.sizes
        total = matrix if total is None else matrix @ total
        assert torch.equal((total > 0).float(), case[f"source{step}"])
        torch.testing.assert_close(matrix, case[f"W{step}"], **WEIGHT)
        torch.testing.assert_close(sizes, case[f"size{step}"].squeeze(-1), **WEIGHT)
        torch.testing.assert_close(reduction.down(x), case[f"y{step}"], **TOKEN)
    torch.testing.assert_close(total, case["W21"], **WEIGHT)


def block(case: Case) -> None:
    settings, sizes = case.settings, case["size_in"].squeeze(-1)
    method, keep = ToMe(settings["prop_attn"]), settings["N"] - settings["r"]
    margins.assert_clear(margins.matching(case["keys"].mean(dim=1), settings["r"], 1), margins.COSINE)
    for given in (sizes, None) if bool((sizes == 1).all()) else (sizes,):
        view, reduction, reduced, out = run_block(case, method, keep, given)
        torch.testing.assert_close(view.x - case["x_in"], case["attn_out"], **TOKEN)
        torch.testing.assert_close(view.x, case["x_attn"], **TOKEN)
        torch.testing.assert_close(view.keys, case["keys"].mean(dim=1), **TOKEN)
        assert torch.equal(_source(reduction), case["source"])
        torch.testing.assert_close(reduction.sizes, case["size_out"].squeeze(-1), **WEIGHT)
        torch.testing.assert_close(reduced, case["reduced"], **TOKEN)
        torch.testing.assert_close(out, case["x_out"], **TOKEN)


def sched(case: Case) -> None:
    settings, many = case.settings, 10**6
    layers, r = settings["layers"], settings["r"]
    if settings["kind"] == "inflection":
        schedule = RemovePerBlock(r[0], inflection=r[1], depth=layers)
    else:
        schedule = RemovePerBlock(r)
    schedule.check(layers)
    assert [many - schedule.kept(layer, many) for layer in range(layers)] == case["per_layer"].tolist()


def kth(case: Case) -> None:
    x, metric, k = case["x"], case["metric"], case.settings["k"]
    places = torch.arange(x.shape[1] // k * k)
    stays = places % k == k - 1
    similar = margins.cosines(metric[:, places[~stays]], metric[:, places[stays]])
    margins.assert_clear(margins.runner_up(similar), margins.COSINE)
    matching = kth_matching(metric, k)
    index = matching.places(x.shape[1])
    reduction = _plain(index, matching.kept.shape[1], True)
    torch.testing.assert_close(reduction.matrix(), case["W_mean"], **WEIGHT)
    torch.testing.assert_close(reduction.down(x), case["y_mean"], **TOKEN)
    whole = case["unmerged"].shape[1]
    torch.testing.assert_close(gather_tokens(case["y_mean"], index[:, :whole]), case["unmerged"], **TOKEN)


CHECKS = {"op": op, "two": two, "block": block, "sched": sched, "kth": kth}
