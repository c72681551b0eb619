"""Budgets: the keep ratio that leaves a share of the multiply-accumulates."""

from __future__ import annotations

import pytest
import timm
import torch

import ttf
from ttf.budget import Costs, Counter
from ttf.models.vit_mini import segmenter_mini, vit_mini
from ttf.schedule import Counts, KeepRatio, Late, RemovePerBlock, early_blocks, late_blocks


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return vit_mini().eval()


def _counter(model: torch.nn.Module, **options) -> Counter:
    with ttf.applied(model, **options):
        plan = ttf.plan(model)
    assert plan is not None
    return Counter(model, plan)


OPTIONS = [
    {"blocks": [3, 6, 9]},
    {"blocks": [3, 6, 9], "method": "tome"},
    {"schedule": "late"},
    {"blocks": [2, 5]},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_the_largest_keep_ratio_within_a_budget(model, options):
    base = ttf.measure.gmacs(model, (3, 96, 96))
    with ttf.applied(model, budget=0.65, **options):
        share = ttf.measure.gmacs(model, (3, 96, 96)) / base
        schedule = ttf.plan(model).schedule
    assert 0.63 < share <= 0.65
    more = {**options, "ratio": round(schedule.ratio + 0.015, 3)}
    with ttf.applied(model, **more):
        assert ttf.measure.gmacs(model, (3, 96, 96)) / base > 0.65
    assert ttf.plan(model) is None


@pytest.mark.parametrize("method", ["token_transform", "tome", "dpc_knn", "evit"])
def test_costs_of_schedules_that_were_not_run(model, method):
    counter = _counter(model, method=method)
    costs = Costs(counter)
    assert costs.exact and costs.halves == (method == "tome")
    for schedule in (KeepRatio(0.6, (3, 6, 9)), RemovePerBlock(9), Counts(((4, 90), (5, 20), (11, 1)))):
        assert costs.share(schedule) == pytest.approx(counter.share(schedule), rel=0.003)


def test_a_counter_leaves_the_model_alone(model):
    before = {name: type(module) for name, module in model.named_modules()}
    _counter(model).share(KeepRatio(0.5, (3,)))
    assert before == {name: type(module) for name, module in model.named_modules()}
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_dense_model_has_the_size_that_it_was_built_for():
    model = segmenter_mini().eval()
    base = ttf.measure.gmacs(model, (3, 96, 96))
    ttf.apply(model, budget=0.8)
    found = ttf.plan(model).schedule
    assert isinstance(found, KeepRatio) and found.blocks == early_blocks(0.8, 12) == (1, 4, 7)
    assert 0.77 < ttf.measure.gmacs(model, (3, 96, 96)) / base <= 0.8
    ttf.apply(model, budget=0.8, schedule="auto")
    assert ttf.plan(model).schedule == found


@pytest.mark.parametrize(
    ("method", "budget"), [("token_transform", 0.65), ("paper", 0.5), ("tome", 0.5), ("evit", 0.4)]
)
def test_a_budget_alone_decides_where_to_reduce(model, method, budget):
    base = ttf.measure.gmacs(model, (3, 96, 96))
    options = {"method": "token_transform", "preset": "paper"} if method == "paper" else {"method": method}
    with ttf.applied(model, budget=budget, **options):
        share, found = ttf.measure.gmacs(model, (3, 96, 96)) / base, ttf.plan(model).schedule
    assert isinstance(found, Late) and found.blocks == late_blocks(budget, found.depth)
    assert budget - 0.03 < share <= budget
    with ttf.applied(model, budget=budget, schedule="auto", **options):
        assert ttf.plan(model).schedule == found


def test_blocks_of_smaller_budgets_begin_earlier():
    found = [late_blocks(budget, 12) for budget in (0.9, 0.6, 0.5, 0.3)]
    assert found == [(4, 6, 8), (4, 6, 8), (3, 5, 7), (2, 4, 6, 8)]
    assert [early_blocks(budget, 24) for budget in (0.7, 0.5)] == [(2, 8, 14), (2, 6, 12)] and early_blocks(0.4, 2) == (
        0,
        1,
    )
    assert late_blocks(0.6, 24) == (8, 12, 16) and late_blocks(0.4, 2) == (0, 1) and late_blocks(0.5, 6) == (1, 2, 3)


@pytest.mark.parametrize("options", [{"recover": True}, {"rounding": "floor"}, {"blocks": [3, 6, 9]}])
def test_equal_cuts_where_tokens_come_back_or_anything_else_is_said(model, options):
    with ttf.applied(model, budget=0.7, **options):
        assert isinstance(ttf.plan(model).schedule, KeepRatio)


def test_everything_is_within_the_whole_budget(model):
    with ttf.applied(model, budget=1.0):
        assert ttf.plan(model).schedule.ratio == 1.0


MISTAKES = [
    ({"budget": 0.5, "ratio": 0.5}, "give one or the other"),
    ({"budget": 0.5, "schedule": KeepRatio(0.5, (3,))}, "budget would not be read"),
    ({"budget": 1.2}, r"budget .* in \(0, 1\], got 1.2"),
    ({"budget": True}, r"in \(0, 1\], got True"),
    ({"budget": "half"}, "got 'half'"),
    ({"budget": 0.2, "blocks": [6]}, "no keep ratio brings this model to 0.2"),
    ({"budget": 0.5, "method": "ats"}, "depends on the image"),
    ({"schedule": "auto"}, "follows from a budget"),
    ({"schedule": "auto", "ratio": 0.5}, "follows from a budget"),
    ({"schedule": "auto", "budget": 0.5, "blocks": [3]}, "leave blocks out"),
]


@pytest.mark.parametrize(("options", "message"), MISTAKES)
def test_mistakes(model, options, message):
    with pytest.raises(ValueError, match=message):
        ttf.apply(model, **options)
    assert ttf.plan(model) is None


def test_a_model_that_takes_any_size_says_so():
    model = timm.create_model("vit_tiny_patch16_224", depth=4, dynamic_img_size=True).eval()
    model.pretrained_cfg, model.patch_embed.img_size = None, None
    with pytest.raises(ValueError, match="images of any size"):
        ttf.apply(model, budget=0.5)
