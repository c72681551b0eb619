"""Segmentation's outcomes and scores; values by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ttf.metrics import measure
from ttf.metrics.segmentation import resampled, scores
from ttf.tasks import segmentation as seg


def test_scores_of_an_example_by_hand():
    mask = torch.tensor([[0, 0, 1], [1, 1, 255]])
    answer = torch.tensor([[0, 1, 1], [1, 3, 2]])
    matrix = seg.confusion(answer, mask, 5)
    assert matrix.nonzero().tolist() == [[0, 0], [0, 1], [1, 1], [1, 3]] and matrix.sum() == 5
    found = scores(seg.areas(matrix))
    # 2 is called where nothing counts, 4 is nowhere: both have no score; 3 is called once and is nowhere: 0
    nan = float("nan")
    torch.testing.assert_close(found.iou, torch.tensor([1 / 2, 2 / 4, nan, 0.0, nan]).double(), equal_nan=True)
    torch.testing.assert_close(found.accuracy, torch.tensor([1 / 2, 2 / 3, nan, nan, nan]).double(), equal_nan=True)
    assert found.miou.item() == pytest.approx(1 / 3)
    assert found.macc.item() == pytest.approx(7 / 12)
    assert found.aacc.item() == pytest.approx(3 / 5)


def _numpy_scores(answers: np.ndarray, masks: np.ndarray, classes: int) -> tuple[float, float, float]:
    """mIoU, mean accuracy and pixel accuracy class by class, from sets of pixels."""
    counted = masks != 255
    ious, accuracies = [], []
    for label in range(classes):
        called, truth = (answers == label) & counted, (masks == label) & counted
        if (called | truth).any():
            ious.append((called & truth).sum() / (called | truth).sum())
        if truth.any():
            accuracies.append((called & truth).sum() / truth.sum())
    return float(np.mean(ious)), float(np.mean(accuracies)), float((answers == masks)[counted].mean())


def test_scores_equal_those_of_sets_of_pixels():
    generator = np.random.default_rng(0)
    masks = generator.choice([*range(7), 255], (6, 10, 11))
    answers = np.where(generator.random(masks.shape) < 0.6, masks % 255, generator.integers(0, 9, masks.shape))
    parts = [seg.confusion(torch.tensor(a), torch.tensor(m), 9) for a, m in zip(answers, masks, strict=True)]
    pixels = seg.areas(torch.stack(parts))
    assert pixels.shape == (6, 3, 9)
    whole = scores(pixels.sum(0))
    expected = _numpy_scores(answers, masks, 9)
    assert (whole.miou.item(), whole.macc.item(), whole.aacc.item()) == pytest.approx(expected)
    torch.testing.assert_close(whole.iou, scores(seg.areas(torch.stack(parts).sum(0))).iou, equal_nan=True)


def test_labels_that_the_model_does_not_know_are_refused():
    with pytest.raises(ValueError, match="label 7 and the model knows 5 classes"):
        seg.confusion(torch.zeros(2, 2).long(), torch.full((2, 2), 7), 5)
    assert seg.confusion(torch.zeros(2, 2).long(), torch.full((2, 2), 255), 5).sum() == 0


def test_sets_are_drawn_from_the_images():
    pixels = torch.randint(1, 50, (30, 3, 4), generator=torch.Generator().manual_seed(0))
    pixels[:, 1:] += pixels[:, :1]  # at least as many pixels as are right
    found = resampled(pixels, times=400)
    assert abs(found.miou.mean() - scores(pixels.sum(0)).miou) < 0.01 and 0 < found.miou.std() < 0.1
    assert torch.equal(found.miou, resampled(pixels, times=400).miou)
    same = resampled(pixels[:1].expand(30, -1, -1), times=5)
    torch.testing.assert_close(same.miou, scores(pixels[0]).miou.expand(5))
    shift = resampled(pixels + torch.tensor([5, 5, 5]).view(3, 1), times=400).miou - found.miou
    assert bool((shift > 0).all())  # set by set, the better model is better


def test_divergence_of_two_classes_by_hand():
    base = torch.tensor([0.5, 0.75]).log().view(2, 1).expand(2, 2)  # p is 0.4, 0.6 at both pixels
    ours = torch.tensor([[0.4, 0.8], [0.6, 0.2]]).log() + 3.0
    kl, agreement = seg.divergence(ours.unsqueeze(1), base.unsqueeze(1))
    assert kl.item() == pytest.approx((0.4 * math.log(0.4 / 0.8) + 0.6 * math.log(0.6 / 0.2)) / 2, abs=1e-6)
    assert agreement.item() == 0.5


def test_a_row_of_figures():
    base = torch.randn(5, 6, 8)
    mask = seg.label_map(base, (12, 16))
    same = seg.outcome(base, base, mask)
    other = seg.outcome(torch.randn(5, 6, 8), base, mask)
    assert same["kl"] == 0 and same["agreement"] == 1 and other["kl"] > 0 and other["agreement"] < 1
    outcomes = {name: torch.stack([same[name], other[name]]) for name in same}
    found = measure("seg", outcomes)
    assert list(found) == ["miou", "aacc", "macc", "agreement", "kl"]
    assert found["miou"]["value"] == pytest.approx(100 * scores(outcomes["areas"].sum(0)).miou.item())
    assert all(figure["ci95"][0] <= figure["value"] <= figure["ci95"][1] for figure in found.values())
    perfect = measure("seg", {name: torch.stack([same[name]] * 2) for name in same})
    assert [perfect[name]["value"] for name in ("miou", "aacc", "macc", "agreement", "kl")] == [100, 100, 100, 100, 0]
