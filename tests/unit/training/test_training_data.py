"""The data of a step depend on the seed and the step alone."""

from __future__ import annotations

import random

import numpy as np
import pytest
import timm.data
import torch
from PIL import Image
from torch.utils.data import Dataset

from ttf.data.reading import BadImageError
from ttf.training import Recipe
from ttf.training.data import Batches, Mixing, Seeded, evaluation_batches, training_batches

IMAGES = 21


def recipe(**changes):
    return Recipe(**{"epochs": 2, "batch_size": 8, "workers": 0, **changes})


def keys(process=0, processes=1, start=0, **changes):
    return list(Batches(recipe(**changes), IMAGES, start, process, processes))


def steps(parts):
    return [parts[i] + parts[i + 1] for i in range(0, len(parts), 2)]


class Pictures(Dataset):
    """Noise, augmented by timm with everything that EViT's recipe has; image 5 may be broken."""

    def __init__(self, broken=False):
        self.broken = broken
        self.transform = timm.data.create_transform(
            16, is_training=True, auto_augment="rand-m9-mstd0.5-inc1", color_jitter=0.4, re_prob=0.25, re_mode="pixel"
        )

    def __len__(self):
        return IMAGES

    def __getitem__(self, index):
        if self.broken and index == 5:
            raise BadImageError("n0/5.JPEG", "truncated")
        pixels = np.random.default_rng(index).integers(0, 256, (20, 20, 3), dtype=np.uint8)
        return self.transform(Image.fromarray(pixels)), index


def test_every_epoch_is_another_permutation_without_its_rest():
    whole = keys()
    assert [len(batch) for batch in whole] == [8] * 4
    first, second = ([i for batch in part for _, i in batch] for part in (whole[:2], whole[2:]))
    assert len(set(first)) == len(set(second)) == 16 and set(first) <= set(range(IMAGES))
    assert first != second and first != sorted(first)
    assert [epoch for batch in whole for epoch, _ in batch] == [0] * 16 + [1] * 16
    assert keys(seed=1) != whole == keys()


def test_data_that_are_random_already_keep_their_order():
    assert [i for batch in keys(shuffle=False)[:2] for _, i in batch] == list(range(16))


def test_processes_and_parts_share_the_same_batches():
    whole = keys()
    assert steps(keys(accumulate=2)) == whole
    assert [a + b for a, b in zip(keys(0, 2), keys(1, 2), strict=True)] == whole
    four = zip(steps(keys(0, 2, accumulate=2)), steps(keys(1, 2, accumulate=2)), strict=True)
    assert [a + b for a, b in four] == whole


def test_resuming_sees_the_batches_that_are_left():
    assert keys(start=3) == keys()[3:]


def test_augmentation_depends_on_seed_epoch_and_image_alone():
    data = Seeded(Pictures(), 0)
    random.seed(1)
    first = data[0, 3][0]
    outside = random.random(), np.random.rand(), torch.rand(1)
    random.seed(2)
    torch.manual_seed(5)
    assert torch.equal(data[0, 3][0], first)
    assert not torch.equal(data[1, 3][0], first)
    assert not torch.equal(Seeded(Pictures(), 1)[0, 3][0], first)
    assert outside != (random.random(), np.random.rand(), torch.rand(1))


def test_workers_give_the_same_images():
    alone, helped = (list(training_batches(Pictures(), Batches(recipe(workers=workers), IMAGES))) for workers in (0, 2))
    for (x, a), (y, b) in zip(alone, helped, strict=True):
        assert torch.equal(x, y) and torch.equal(a, b)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_is_named(workers):
    with pytest.raises(ValueError, match=r"n0/5\.JPEG cannot be read \(truncated\): replace it, or remove it"):
        list(training_batches(Pictures(broken=True), Batches(recipe(workers=workers), IMAGES)))
    with pytest.raises(ValueError, match=r"n0/5\.JPEG cannot be read"):
        list(evaluation_batches(Pictures(broken=True), range(8), 4, workers))


def _mixed(mixing, x, y, step, size):
    """The images of a step and their targets, mixed in parts of ``size``, ordered by their first pixel."""
    parts = [mixing(x[i : i + size].clone(), y[i : i + size], step, i) for i in range(0, len(x), size)]
    rows = torch.cat([torch.cat((a.flatten(1), b), dim=1) for a, b in parts])
    return rows[rows[:, 0].argsort()]


def test_mixing_is_the_same_in_any_parts():
    torch.manual_seed(0)
    x, y, mixing = torch.rand(16, 3, 8, 8), torch.randint(0, 5, (16,)), Mixing(5, images=8)
    for step in range(6):
        whole = _mixed(mixing, x, y, step, 16)
        for size in (2, 4, 8):
            torch.testing.assert_close(_mixed(mixing, x, y, step, size), whole)


def test_mixing_pairs_neighbours():
    mixing, x, y = Mixing(4, cutmix_alpha=0.0, images=4), torch.eye(4).view(4, 1, 2, 2), torch.arange(4)
    mixed, targets = mixing(x.clone(), y, step=3, offset=0)
    torch.testing.assert_close(mixed.flatten(1), targets)  # an image that is its own target
    assert targets.sum(dim=1).tolist() == pytest.approx([1.0] * 4)
    share = targets.max().item()
    assert 0.5 <= share < 1.0
    pairs = sorted(tuple(row.nonzero().flatten().tolist()) for row in targets)
    assert pairs == [(0, 1), (0, 1), (2, 3), (2, 3)]


def test_mixing_draws_anew_for_every_step_and_every_group():
    x, y, mixing = torch.rand(8, 3, 4, 4), torch.arange(8), Mixing(8, cutmix_alpha=0.0, images=4)
    shares = [mixing(x.clone(), y, step, 0)[1].max(dim=1).values for step in (0, 0, 1)]
    assert torch.equal(shares[0], shares[1]) and not torch.equal(shares[0], shares[2])
    assert shares[0][0] != shares[0][4]


@pytest.mark.parametrize("wrong", [{"mixup_alpha": 0.0, "cutmix_alpha": 0.0}, {"mixup_alpha": -1.0}, {"images": 3}])
def test_impossible_mixing_is_refused(wrong):
    with pytest.raises(ValueError, match="mixing"):
        Mixing(5, **wrong)
