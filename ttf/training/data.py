"""The data of a step as a function of (seed, step) alone, whatever the processes, workers, or point of resuming."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from timm.data import Mixup
from torch import Tensor
from torch.utils.data import Dataset, Sampler, default_collate

from ttf.data.reading import BadImageError, shown
from ttf.data.subset import batched
from ttf.training.recipe import Recipe

Key = tuple[int, int]  # (epoch, index of the image)


def _number(*entropy: int) -> int:
    """A 32-bit seed from several integers, each of which matters."""
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])


def seed_torch(*entropy: int) -> None:
    """Seed torch's generators (dropout, stochastic depth, random pruning) from several integers."""
    torch.manual_seed(_number(*entropy))


@contextmanager
def seeded(*entropy: int) -> Iterator[None]:
    """Inside, Python's, NumPy's and torch's CPU generators start from these integers; afterwards they are as before."""
    number, before = _number(*entropy), (random.getstate(), np.random.get_state())
    with torch.random.fork_rng(devices=[]):
        random.seed(number)
        np.random.seed(number)
        torch.default_generator.manual_seed(number)
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])


class Seeded(Dataset[Any]):
    """A data set whose augmentation depends on (seed, epoch, index) alone; items are asked for by (epoch, index).

    Args:
        data: map-style; its transform may use the generators of Python, NumPy and torch.
        seed: of the augmentation.
    """

    def __init__(self, data: Any, seed: int) -> None:
        self.data, self.seed = data, seed

    def __getitem__(self, key: Key) -> Any:
        epoch, index = key
        try:
            with seeded(self.seed, epoch, index):
                return self.data[index]
        except ValueError as error:  # an exception would lose its type on the way out of a worker
            return error


def _collate(items: list[Any]) -> Any:
    bad = [item for item in items if isinstance(item, ValueError)]
    return bad[0] if bad else default_collate(items)


def _readable(batch: Any) -> list[Tensor]:
    if isinstance(batch, BadImageError):
        path, reason = batch.args
        raise ValueError(f"{shown(path)} cannot be read ({reason}): replace it, or remove it from the data set")
    if isinstance(batch, ValueError):
        raise batch
    return batch


class Batches(Sampler[list[Key]]):
    """The keys of the micro batches of one process, from a step on.

    Step s of an epoch takes the images s * batch_size to (s + 1) * batch_size of that epoch's order, a process a
    contiguous part of them, which it works through in ``accumulate`` parts.

    Args:
        recipe: hyper-parameters.
        images: size of the data set.
        start: first step.
        process: number of this process; processes: how many there are.
    """

    def __init__(self, recipe: Recipe, images: int, start: int = 0, process: int = 0, processes: int = 1) -> None:
        self.recipe, self.images, self.start = recipe, images, start
        self.process, self.size = process, recipe.micro_batch(processes)
        self.per_epoch, self.total = recipe.steps_per_epoch(images), recipe.total_steps(images)

    def offset(self, part: int) -> int:
        """Place of a micro batch's first image in the batch of its step."""
        return (self.process * self.recipe.accumulate + part) * self.size

    def _order(self, epoch: int) -> Tensor:
        if not self.recipe.shuffle:
            return torch.arange(self.images)
        return torch.randperm(self.images, generator=torch.Generator().manual_seed(_number(self.recipe.seed, epoch)))

    def __len__(self) -> int:
        return (self.total - self.start) * self.recipe.accumulate

    def __iter__(self) -> Iterator[list[Key]]:
        order, known = torch.empty(0), -1
        for step in range(self.start, self.total):
            epoch, place = divmod(step, self.per_epoch)
            if epoch != known:
                order, known = self._order(epoch), epoch
            for part in range(self.recipe.accumulate):
                first = place * self.recipe.batch_size + self.offset(part)
                yield [(epoch, index) for index in order[first : first + self.size].tolist()]


def training_batches(data: Dataset[Any], batches: Batches) -> Iterator[list[Tensor]]:
    """The micro batches of one process, in order. Raises ``ValueError`` naming an image that cannot be read."""
    recipe = batches.recipe
    seeded, pin = Seeded(data, recipe.seed), torch.cuda.is_available()
    return map(_readable, batched(seeded, batches, recipe.workers, _collate, pin_memory=pin))


def evaluation_batches(data: Any, indices: range, size: int, workers: int) -> Iterator[list[Tensor]]:
    """Some images of the test set, in order. Raises ``ValueError`` naming an image that cannot be read."""
    keys = [(0, index) for index in indices]
    batches = [keys[i : i + size] for i in range(0, len(keys), size)]
    return map(_readable, batched(Seeded(data, 0), batches, workers, _collate))


class Mixing:
    """timm's mixup and cutmix, drawn from (seed, step) alone: the same for any number of processes and parts.

    One draw holds for ``images`` consecutive images of a step's batch, in which neighbours 2k and 2k + 1 are mixed.

    Args:
        num_classes: of the targets.
        mixup_alpha, cutmix_alpha: of the Beta distributions; 0 switches one of the two off.
        images: even number of images that share a draw; 256 is one GPU's batch in EViT's recipe.
        seed: of the draws.

    Raises:
        ValueError: neither mixup nor cutmix, or an odd number of images.
    """

    def __init__(
        self, num_classes: int, mixup_alpha: float = 0.8, cutmix_alpha: float = 1.0, images: int = 256, seed: int = 0
    ) -> None:
        if min(mixup_alpha, cutmix_alpha) < 0 or max(mixup_alpha, cutmix_alpha) == 0:
            raise ValueError("mixing needs mixup_alpha or cutmix_alpha above 0: set mixing=null for none")
        if images < 2 or images % 2:
            raise ValueError(f"mixing.images must be an even number, got {images}")
        self.images, self.seed = images, seed
        self._mixup = Mixup(mixup_alpha, cutmix_alpha, label_smoothing=0.0, num_classes=num_classes)

    def __call__(self, images: Tensor, labels: Tensor, step: int, offset: int) -> tuple[Tensor, Tensor]:
        """Mixed images (B, 3, H, W) and their targets (B, classes).

        Args:
            images, labels: a micro batch, (B, 3, H, W) and (B,).
            step: number of the step.
            offset: place of the first image in the step's batch.
        """
        if len(images) % 2 or offset % 2:
            raise ValueError(
                f"mixup and cutmix pair the images of a part, and there are {len(images)}: use an even number"
            )
        parts, first = [], offset
        while first < offset + len(images):
            end = min((first // self.images + 1) * self.images, offset + len(images))
            here = slice(first - offset, end - offset)
            with seeded(self.seed, step, first // self.images):
                parts.append(self._mixup(_opposite(images[here]), _opposite(labels[here])))
            first = end
        return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])


def _opposite(x: Tensor) -> Tensor:
    """Neighbours 2k and 2k + 1 moved to opposite places, where timm pairs them."""
    return torch.cat((x[::2], x[1::2].flip(0)))
