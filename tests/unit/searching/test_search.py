"""The search: schedules of one cost, runs that share blocks, the same answer again and after an interruption."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
import torch
from torch import nn

import ttf
from ttf.budget import Costs, Counter
from ttf.models.vit_mini import dpt_mini, segmenter_mini, vit_mini
from ttf.searched import Searched, load
from ttf.searching.proposals import Space, changed
from ttf.searching.runs import Runs, damage
from ttf.searching.search import Settings, search
from ttf.searching.surrogate import guesses

QUIET = Settings(evaluations=14, batch=4, progress=False)


def _model(**kwargs) -> nn.Module:
    torch.manual_seed(0)
    model = vit_mini(**kwargs)
    for module in model.modules():  # answers that depend on the image
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.08)
    return model.eval()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(16, 3, 96, 96, generator=torch.Generator().manual_seed(1))


def _plan(model: nn.Module, **options):
    with ttf.applied(model, **options):
        plan = ttf.plan(model)
    assert plan is not None
    return plan


@pytest.mark.parametrize(("method", "free"), [("token_transform", True), ("tome", True), ("dpc_knn", False)])
def test_proposals_keep_to_the_budget(method: str, free: bool):
    model = _model()
    space = Space(Costs(Counter(model, _plan(model, method=method))), 0.6, free)
    seeds = space.seeds((3, 6, 9))
    draw, found = Random(0), list(seeds)
    while len(found) < 60:
        child = changed(found[:6], draw, 0.3, space)
        assert child is not None
        found.append(child)
    assert len(set(found)) > 40
    for counts in found:
        assert 0.58 < space.costs.of(counts) <= 0.6
        assert all(a >= b >= 1 for a, b in pairwise((144, *counts)))
        if method == "tome":
            assert all(b >= a - a // 2 for a, b in pairwise((144, *counts)))
        assert (counts[-1] < counts[-2]) == free


def test_a_budget_that_is_out_of_reach():
    model = _model()
    space = Space(Costs(Counter(model, _plan(model))), 0.01, True)
    assert space.seeds((3, 6, 9)) == []


def test_runs_share_blocks_and_say_the_same(images):
    model = _model()
    runs = Runs(model, _plan(model), images, "kl", 8, 64)
    tight = Runs(model, _plan(model), images, "kl", 8, 1)
    one = Searched((144, 144, 144, 90, 90, 90, 60, 60, 60, 60, 40, 1), 144)
    other = Searched((144, 144, 144, 90, 90, 90, 50, 50, 50, 50, 30, 1), 144)
    runs.damage(one, 0)
    before = len(runs._kept)
    found = runs.damage(other, 0)
    assert len(runs._kept) == before + 6  # of the seventh block and those behind it
    assert found == tight.damage(other, 0) and tight._held <= 2**20 < runs._held
    with torch.inference_mode(), ttf.applied(model, schedule=other):
        ours = model(images[:8])
    base = model(images[:8])
    assert found == pytest.approx(damage([ours], [base], "kl").tolist(), rel=1e-5)
    log_p, log_q = base[0].double().log_softmax(0), ours[0].double().log_softmax(0)
    assert found[0] == pytest.approx((log_p.exp() * (log_p - log_q)).sum().item(), rel=1e-4)
    assert ttf.plan(model) is None and not any("forward" in vars(module) for module in model.modules())


def test_the_search_is_better_than_equal_cuts_and_the_same_again(images):
    model = _model()
    found = search(model, images, 0.6, settings=QUIET)
    assert found == search(model, images, 0.6, settings=QUIET)
    base = ttf.measure.gmacs(model, (3, 96, 96))
    with ttf.applied(model, schedule=found):
        assert 0.58 < ttf.measure.gmacs(model, (3, 96, 96)) / base <= 0.6
    assert found.drops_behind_last
    runs = Runs(model, _plan(model), images, "kl", 16, 64)
    ratio = _plan(model, budget=0.6).schedule.ratio
    cuts = [int(144 * ratio), int(int(144 * ratio) * ratio), int(int(int(144 * ratio) * ratio) * ratio)]
    equal = Searched((*[144] * 3, *[cuts[0]] * 3, *[cuts[1]] * 3, *[cuts[2]] * 3), 144)
    assert sum(runs.damage(found, 0)) < sum(runs.damage(equal, 0))


def _lines(path: Path) -> list[str]:
    return Path(f"{path}.log").read_text().splitlines()


def test_an_interrupted_search_goes_on(images, tmp_path: Path, monkeypatch):
    model, path = _model(), tmp_path / "one.yaml"
    whole = search(model, images, 0.6, settings=QUIET, out=tmp_path / "whole.yaml")
    measured, original = [], Runs.damage

    def stopping(self, schedule, batch):
        if len(measured) == 12:
            raise KeyboardInterrupt
        measured.append((schedule, batch))
        return original(self, schedule, batch)

    monkeypatch.setattr(Runs, "damage", stopping)
    with pytest.raises(KeyboardInterrupt):
        search(model, images, 0.6, settings=QUIET, out=path)
    monkeypatch.setattr(Runs, "damage", original)
    lines = _lines(path)
    Path(f"{path}.log").write_text("\n".join(lines)[:-9])  # the last one was cut off
    assert search(model, images, 0.6, settings=QUIET, out=path) == whole == load(path)
    again = [tuple(map(str, json.loads(line)[:2])) for line in _lines(path)[1:]]
    assert len(again) == len(set(again)) and _lines(path)[1:] == _lines(tmp_path / "whole.yaml")[1:]
    assert "equal_cuts" in path.read_text() and "ToMe" not in path.read_text()


def test_the_log_of_another_search_is_not_taken(images, tmp_path: Path, capsys):
    search(_model(), images, 0.6, settings=QUIET, out=tmp_path / "one.yaml", evaluations=2)
    search(_model(), images, 0.6, "tome", settings=QUIET, out=tmp_path / "one.yaml", evaluations=2)
    assert "of another search" in capsys.readouterr().err


def test_heads_that_read_all_tokens_keep_them(images):
    found = search(_model(global_pool="avg", class_token=False), images, 0.7, settings=QUIET, evaluations=3)
    assert not found.drops_behind_last


@pytest.mark.parametrize(("make", "objective"), [(segmenter_mini, "kl"), (dpt_mini, "error")])
def test_dense_models(make, objective, images):
    torch.manual_seed(0)
    found = search(make().eval(), images[:8], 0.8, objective=objective, settings=QUIET, evaluations=3)
    assert not found.drops_behind_last and found.counts[-1] < 144


def test_guesses_follow_what_was_measured():
    known = [(100, 100 - 2 * step, 1) for step in range(20)]
    values = [math.cos(step / 6) for step in range(20)]
    near, far = guesses(known, values, [(100, 63, 1), (100, 99, 1)], 100)
    assert near < far


MISTAKES = [
    ({"budget": 0.0}, "budget is the share"),
    ({"budget": 1.0}, "nothing to search"),
    ({"budget": 0.01}, "no schedule brings this model to 0.01"),
    ({"images": torch.zeros(4, 3, 96, 96)}, "at least 8 images, got"),
    ({"images": "photos"}, "got str"),
    ({"objective": "top1"}, "one of kl, error"),
    ({"method": "ats"}, "depends on the image"),
    ({"method": "uniform_pool"}, "does not keep the numbers"),
    ({"evaluations": 0}, "evaluations must be a whole number, at least 1"),
    ({"out": "found.txt"}, "ends in .yaml"),
    ({"kapa": 0.5}, "kapa"),
    ({"images": torch.full((8, 3, 96, 96), torch.nan)}, "NaN"),
]


@pytest.mark.parametrize(("options", "message"), MISTAKES)
def test_mistakes(options, message, images):
    with pytest.raises(ValueError, match=message):
        search(_model(), **{"images": images, "budget": 0.6, "settings": QUIET, **options})
