"""ATC against its official clustering: partitions, as the clusters there are in scikit-learn's order."""

from __future__ import annotations

import torch

from tests.golden.blocks import TOKEN, WEIGHT, Case
from ttf.methods.atc import ATC
from ttf.methods.base import LayerView


def op(case: Case) -> None:
    settings, x, sizes = case.settings, case["x"], case["size_in"].squeeze(-1)
    prefix = int(settings["class_token"])
    torch.testing.assert_close(case["keys"].mean(dim=1), case["metric"], **WEIGHT)
    assert settings["margin_cut"] > 1e-5
    if settings["entry"] == "r":  # with a class token the patch removes one less than it is asked for
        assert settings["N"] - prefix - settings["clusters"] == settings["r_of_the_patch"] - prefix
    view = LayerView(x, prefix, sizes=sizes, keys=case["metric"])
    reduction = ATC(settings["linkage"]).reduce(view, prefix + settings["clusters"])
    theirs = case["labels"]
    order = torch.stack(
        [
            ours.new_zeros(prefix + settings["clusters"]).scatter(0, ours, label)
            for ours, label in zip(reduction.index, theirs, strict=True)
        ]
    )
    assert torch.equal(order.gather(1, reduction.index), theirs)
    assert torch.equal(order.sort(1).values, torch.arange(order.shape[1]).expand_as(order))
    for ours, name, tolerance in (
        (reduction.matrix(), "W", WEIGHT),
        (reduction.sizes.unsqueeze(2), "size_out", WEIGHT),
        (reduction.down(x), "y", TOKEN),
        ((reduction.matrix() > 0).float(), "source", WEIGHT),
    ):
        moved = torch.zeros_like(ours).scatter(1, order.unsqueeze(2).expand_as(ours), ours)
        torch.testing.assert_close(moved, case[name], **tolerance)


CHECKS = {"op": op}
