"""Declarations of metrics, their estimators and paired comparisons, outcomes image by image; values by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ttf import metrics
from ttf.metrics import Estimate, Metric, outcomes
from ttf.metrics.estimators import average, mean_difference, share
from ttf.metrics.metric import _DECLARED
from ttf.metrics.paired import mcnemar, signed_rank


def bits(right: int, n: int) -> torch.Tensor:
    return torch.arange(n) < right


# --- paired comparisons


def test_mcnemar_counts_only_the_images_where_two_rows_differ():
    a = torch.tensor([1, 1, 1, 1, 1, 1, 0, 1, 0]).bool()
    b = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 0]).bool()
    # 5 against 1 of 6: two-sided 2 (C(6,5) + C(6,6)) / 2^6
    assert mcnemar(a, b) == pytest.approx(2 * 7 / 64)
    assert mcnemar(b, a) == mcnemar(a, b)
    assert mcnemar(a, a) == 1


def test_signed_rank_of_values_that_all_fall():
    a = torch.arange(1.0, 7.0)
    assert signed_rank(a, 2 * a) == pytest.approx(2 / 2**6)
    assert signed_rank(a, a) == 1


def test_paired_interval_of_a_difference():
    # differences 100, 0, 0, 0: mean 25, standard deviation 50, half width 1.96 * 50 / 2
    difference = mean_difference("top1", 100)
    found = difference({"top1": bits(2, 4)}, {"top1": bits(1, 4)})
    assert found.value == 25
    assert (found.low, found.high) == pytest.approx((25 - 48.999, 25 + 48.999), abs=1e-3)
    assert difference({"top1": bits(3, 4)}, {"top1": bits(3, 4)}) == Estimate(0, 0, 0)
    with pytest.raises(ValueError, match="4 and 3 images cannot be paired"):
        difference({"top1": bits(3, 4)}, {"top1": bits(3, 3)})


@pytest.mark.parametrize("task", ["cls", "seg"])
def test_every_comparison_asks_for_the_same_images(task):
    few, many = ({"top1": bits(2, n), "kl": torch.rand(n), "areas": torch.ones(n, 3, 2)} for n in (4, 5))
    compared = [call for metric in metrics.of_task(task) for call in (metric.difference, metric.test) if call]
    assert compared
    for call in compared:
        with pytest.raises(ValueError, match="4 and 5 images cannot be paired"):
            call(few, many)


# --- declarations


def test_what_tasks_declare():
    assert [m.name for m in metrics.of_task("cls")] == ["top1", "top5", "agreement", "kl", "class_token_error"]
    assert [m.name for m in metrics.of_task("seg")] == ["miou", "aacc", "macc", "agreement", "kl"]
    assert (metrics.headline("cls").name, metrics.headline("seg").name) == ("top1", "miou")
    assert metrics.named("seg", "kl").unit == "nats per pixel"


def test_unknown_tasks_and_metrics_are_named_with_the_known_ones():
    with pytest.raises(ValueError, match="no metrics of a task 'depht': there are those of cls, .*seg"):
        metrics.of_task("depht")
    with pytest.raises(ValueError, match="task cls has no metric 'miou': there are top1, top5"):
        metrics.named("cls", "miou")


def test_declarations_that_contradict_themselves(monkeypatch):
    monkeypatch.setattr("ttf.metrics.metric._DECLARED", dict(_DECLARED))
    one = Metric("a", "a", "", higher_is_better=True, estimate=average("a"), headline=True)
    with pytest.raises(ValueError, match="declared already"):
        metrics.declare("cls", [one])
    with pytest.raises(ValueError, match="declared twice: a, a"):
        metrics.declare("new", [one, one])
    with pytest.raises(ValueError, match="exactly one"):
        metrics.declare("new", [])
    metrics.declare("new", [one])
    assert metrics.of_task("new") == (one,)


def test_values_in_words():
    kl, top1 = metrics.named("cls", "kl"), metrics.headline("cls")
    assert [kl.text(v) for v in (0.0, 0.0327, 0.00042)] == ["0.0000", "0.0327", "4e-04"]
    assert top1.bracketed(Estimate(85.04, 82.66, 87.12)) == "85.0 [82.7, 87.1]"
    assert top1.bracketed(Estimate(math.nan, math.nan, math.nan)) == top1.text(math.nan) == ""
    assert (top1.head, kl.head, top1.axis) == ("top-1 %", "KL", "top-1, %")
    assert kl.axis == "KL(uncompressed || compressed), nats"
    assert (top1.points, kl.points, metrics.named("cls", "class_token_error").points) == (
        "points of top-1",
        "nats of KL",
        "err",
    )


@pytest.mark.parametrize(("higher", "word", "lost"), [(True, "drop", 25.0), (False, "rise", -25.0)])
def test_loss_goes_by_the_direction(higher, word, lost):
    metric = Metric("x", "x", "%", higher, share("x"), difference=mean_difference("x", 100), headline=True)
    base, ours = {"x": bits(2, 4)}, {"x": bits(1, 4)}
    assert metric.loss == word and metric.lost(50, 25) == lost
    assert metric.lost_between(base, ours).value == lost
    assert metrics.named("cls", "kl").lost_between(base, ours) is None


def test_estimates_as_rows_keep_them():
    one = {"top1": bits(3, 4), "top5": bits(4, 4), "agreement": bits(2, 4), "kl": torch.tensor([0.0, 1.0, 2.0, 3.0])}
    found = metrics.measure("cls", {**one, "class_token_error": torch.ones(4)})
    assert [found[name]["value"] for name in found] == [75, 100, 50, 1.5, 1]
    assert found["class_token_error"]["ci95"] == [1, 1]


# --- outcomes image by image


def _images(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        {"score": torch.rand((), generator=generator), "boxes": torch.rand(length, 4, generator=generator)}
        for length in lengths
    ]


def test_outcomes_of_differing_length_are_values_and_lengths():
    images = _images([2, 0, 3])
    found = outcomes.stack(images)
    assert {name: tuple(values.shape) for name, values in found.items()} == {
        "score": (3,),
        "boxes.values": (5, 4),
        "boxes.lengths": (3,),
    }
    assert found["boxes.lengths"].tolist() == [2, 0, 3] and found["boxes.lengths"].dtype == torch.int64
    assert outcomes.count(found) == 3 and outcomes.names(found) == ["score", "boxes"]
    rest = outcomes.select(found, slice(1, None))
    assert rest["boxes.lengths"].tolist() == [0, 3]
    assert torch.equal(rest["boxes.values"], images[2]["boxes"]) and torch.equal(rest["score"], found["score"][1:])
    none = outcomes.select(found, slice(3, None))
    assert outcomes.count(none) == 0 and none["boxes.values"].shape == (0, 4)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=6), st.data())
def test_selecting_is_stacking_the_selected(lengths, data):
    images = _images(lengths)
    chosen = data.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, max_size=6))
    found, expected = outcomes.select(outcomes.stack(images), chosen), outcomes.stack([images[i] for i in chosen])
    for name in ("score", "boxes"):  # whether all are of one length depends on which were chosen
        for piece, other in zip(outcomes.pieces(found, name), outcomes.pieces(expected, name), strict=True):
            assert torch.equal(piece, other)
    again = outcomes.stack(outcomes.split(outcomes.stack(images)))
    assert all(torch.equal(values, again[name]) for name, values in outcomes.stack(images).items())


def test_outcomes_that_do_not_fit_together():
    with pytest.raises(ValueError, match="different numbers of images: {'a': 2, 'b': 3}"):
        outcomes.count({"a": torch.ones(2), "b": torch.ones(3)})
    with pytest.raises(ValueError, match=r"boxes\.values does not fit its lengths"):
        outcomes.count({"boxes.values": torch.ones(4, 4), "boxes.lengths": torch.tensor([1, 2])})
    with pytest.raises(ValueError, match="without any image"):
        outcomes.stack([])
    with pytest.raises(ValueError, match=r"different outcomes: \['a', 'b'\]"):
        outcomes.stack([{"a": torch.ones(1)}, {"b": torch.ones(1)}])
    with pytest.raises(ValueError, match="outcome a differs in more than its first dimension"):
        outcomes.stack([{"a": torch.ones(1, 2)}, {"a": torch.ones(2, 3)}])
