"""Scenes composed from the UCI repository's handwritten digits: the embedded data set of the mini scale.

One generator yields everything that the tasks of this project ask for: an image, its class (the digit of the
nearest object), a semantic mask, boxes and a depth map. Scene ``i`` of a split is a pure function of
``(seed, i)``, so any subset is reproducible, and train and test scenes are built from disjoint digits.

Shapes: S side in pixels (96), K objects of a scene.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

DIGITS = Path(__file__).with_name("digits.npz")
SIDE = 96
GENERATOR = 1  # raise when scenes change: rows of other scenes are no longer the same run
NUM_CLASSES = 10
BACKGROUND = 0  # label of the semantic mask; digit d has label d + 1
TEST_FRACTION = 0.25
FOCAL = 48.0  # pixels: an object of one metre at depth z is FOCAL / z pixels high
MAIN_SIZE = (42, 64)
OTHER_SIZE = (14, 26)
MAX_OTHERS = 4
# of scenes whose digits lie apart
APART = 1
LARGEST_SIZE = (42, 50)
SMALLER_SIZE = (27, 35)
MAX_APART = 4
MAX_COVER = 0.08
TRIES = 60


def check_set(length: int, seed: int) -> None:
    """Raise ``ValueError`` for a number of scenes below 1, or a seed below 0."""
    if length < 1:
        raise ValueError(f"length is a number of scenes, at least 1, got {length}")
    if seed < 0:
        raise ValueError(f"seed of the scenes must be at least 0, got {seed}")


@dataclass(frozen=True)
class Scene:
    """One scene with all its annotations.

    Attributes:
        image: (S, S, 3) uint8.
        label: class of the scene, the digit (0-9) of the nearest object.
        mask: (S, S) uint8, 0 background, d + 1 for a pixel of digit d.
        boxes: (K, 4) float32, x0 y0 x1 y1 in pixels, the visible extent of each visible object.
        box_labels: (K,) int64, digit of each box.
        depth: (S, S) float32, metres.
    """

    image: np.ndarray
    label: int
    mask: np.ndarray
    boxes: np.ndarray
    box_labels: np.ndarray
    depth: np.ndarray


@dataclass(frozen=True)
class _Object:
    digit: int
    alpha: np.ndarray  # (size, size) opacity in [0, 1]
    left: int
    top: int
    colour: np.ndarray  # (3,) in [0, 1]

    @property
    def depth(self) -> float:
        return FOCAL / self.alpha.shape[0]


@lru_cache(maxsize=1)
def _digits() -> tuple[np.ndarray, np.ndarray]:
    with np.load(DIGITS) as data:  # images of 0 to 16, as the data set of the UCI repository has them
        return (data["images"] / 16.0).astype(np.float32), data["labels"].astype(np.int64)


@lru_cache(maxsize=2)
def digit_split(split: str) -> tuple[np.ndarray, np.ndarray]:
    """The digits of ``split`` ("train" or "test"): images (n, 8, 8) in [0, 1] and labels (n,); disjoint."""
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    images, labels = _digits()
    order = np.random.default_rng(0).permutation(len(images))
    n_test = int(len(images) * TEST_FRACTION)
    chosen = order[:n_test] if split == "test" else order[n_test:]
    return images[chosen], labels[chosen]


def _background(rng: np.random.Generator) -> np.ndarray:
    """Smooth dim clutter, (S, S, 3) in [0, 1]: shades of grey with a tint."""
    coarse = (rng.uniform(0.0, 0.4, (6, 6, 1)) + rng.uniform(0.0, 0.15, (6, 6, 3))).astype(np.float32)
    channels = [Image.fromarray(coarse[..., c]).resize((SIDE, SIDE), Image.Resampling.BICUBIC) for c in range(3)]
    smooth = np.stack([np.asarray(c) for c in channels], axis=-1)
    grain = rng.normal(0.0, 0.03, (SIDE, SIDE, 1)).astype(np.float32)
    return smooth + grain


def _place(rng: np.random.Generator, split: str, sizes: tuple[int, int]) -> _Object:
    images, labels = digit_split(split)
    pick = int(rng.integers(len(images)))
    size = int(rng.integers(sizes[0], sizes[1] + 1))
    enlarged = Image.fromarray(images[pick]).resize((size, size), Image.Resampling.BICUBIC)
    turned = enlarged.rotate(float(rng.uniform(-12, 12)), Image.Resampling.BILINEAR)
    left, top = (int(v) for v in rng.integers(0, SIDE - size + 1, 2))
    colour = rng.uniform(0.5, 1.0, 3).astype(np.float32)
    return _Object(int(labels[pick]), np.clip(np.asarray(turned), 0.0, 1.0), left, top, colour)


def _boxes(instances: np.ndarray, objects: list[_Object]) -> tuple[np.ndarray, np.ndarray]:
    boxes, labels = [], []
    for number, thing in enumerate(objects, start=1):
        rows, columns = np.nonzero(instances == number)
        if len(rows):
            boxes.append((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
            labels.append(thing.digit)
    return np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int64)


def _painted(rng: np.random.Generator, objects: list[_Object]) -> Scene:
    """Objects on a background, far ones first; the class is the digit of the last, nearest one."""
    canvas = _background(rng)
    mask = np.zeros((SIDE, SIDE), np.uint8)
    instances = np.zeros((SIDE, SIDE), np.uint8)
    depth = np.repeat(np.linspace(9.0, 4.0, SIDE, dtype=np.float32)[:, None], SIDE, axis=1)
    for number, thing in enumerate(objects, start=1):
        size = thing.alpha.shape[0]
        window = np.s_[thing.top : thing.top + size, thing.left : thing.left + size]
        alpha = thing.alpha[..., None]
        canvas[window] = canvas[window] * (1 - alpha) + thing.colour * alpha
        solid = thing.alpha > 0.4
        mask[window][solid] = thing.digit + 1
        instances[window][solid] = number
        depth[window][solid] = thing.depth
    boxes, box_labels = _boxes(instances, objects)
    image = (np.clip(canvas, 0.0, 1.0) * 255).round().astype(np.uint8)
    return Scene(image, objects[-1].digit, mask, boxes, box_labels, depth)


def compose(seed: int, index: int, split: str = "train") -> Scene:
    """Scene ``index`` of ``split``: a large near digit, up to four small far ones, coloured clutter behind.

    Args:
        seed: seed of the whole data set.
        index: number of the scene, >= 0.
        split: "train" or "test"; the digits of the two are disjoint.
    """
    rng = np.random.default_rng((seed, index, int(split == "test")))
    others = [_place(rng, split, OTHER_SIZE) for _ in range(int(rng.integers(1, MAX_OTHERS + 1)))]
    main = _place(rng, split, MAIN_SIZE)
    # far to near, so that near ones cover far ones
    return _painted(rng, [*sorted(others, key=lambda o: -o.depth), main])


def _covers(a: _Object, b: _Object) -> float:
    """Area that the squares of two objects share, over that of the smaller one."""
    (one, other) = ((a.left, a.top, a.alpha.shape[0]), (b.left, b.top, b.alpha.shape[0]))
    sides = [min(one[i] + one[2], other[i] + other[2]) - max(one[i], other[i]) for i in (0, 1)]
    return max(0, sides[0]) * max(0, sides[1]) / min(one[2], other[2]) ** 2


def compose_apart(seed: int, index: int, split: str = "train") -> Scene:
    """Scene ``index`` of 2 to 4 digits that hardly overlap, one of them clearly the largest: those that one can name.

    Args:
        seed, index, split: see ``compose``; the same numbers give another scene here.
    """
    rng = np.random.default_rng((seed, index, int(split == "test"), APART))
    wanted, objects = int(rng.integers(2, MAX_APART + 1)), [_place(rng, split, LARGEST_SIZE)]
    for _ in range(wanted - 1):
        digit = _place(rng, split, SMALLER_SIZE)
        corners = rng.integers(0, SIDE - digit.alpha.shape[0] + 1, (TRIES, 2)).tolist()
        tries = (replace(digit, left=left, top=top) for left, top in corners)
        free = (one for one in tries if all(_covers(one, there) < MAX_COVER for there in objects))
        objects += [found] if (found := next(free, None)) else []  # none: no room is left
    return _painted(rng, objects[::-1])


LAYOUTS = {"near": compose, "apart": compose_apart}


class SceneClassification(Dataset[tuple[torch.Tensor, ...]]):
    """Scenes as a classification data set: (image after ``transform``, label), and the labels of the patches if asked.

    Args:
        split: "train" or "test".
        length: number of scenes.
        seed: seed of the set; scene i depends on (seed, i, split) alone.
        patch: side of a patch in pixels: a third item, (S / patch, S / patch) int64, holds the semantic label of each
            patch's centre.
        transform: from a PIL image to a tensor.
        layout: "near": a large digit in front of small ones; "apart": 2 to 4 digits that hardly overlap.
    """

    classes: ClassVar[list[str]] = [str(d) for d in range(NUM_CLASSES)]

    def __init__(
        self,
        split: str,
        length: int,
        seed: int = 0,
        patch: int | None = None,
        transform: Callable[[Image.Image], torch.Tensor] | None = None,
        layout: str = "near",
    ) -> None:
        check_set(length, seed)
        self.split, self.length, self.seed, self.patch, self.transform = split, length, seed, patch, transform
        if layout not in LAYOUTS:
            raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
        self.layout, self.compose = layout, LAYOUTS[layout]

    def __len__(self) -> int:
        return self.length

    def image(self, index: int) -> Image.Image:
        """Scene ``index`` as a picture."""
        return Image.fromarray(self.compose(self.seed, index, self.split).image)

    def digest(self) -> str:
        """Identity of the set."""
        name = "scenes" if self.layout == "near" else f"scenes-{self.layout}"
        return f"{name}-{GENERATOR}-{self.split}-{self.seed}-{self.length}"

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        if not 0 <= index < self.length:
            raise IndexError(index)
        scene = self.compose(self.seed, index, self.split)
        image = Image.fromarray(scene.image)
        item = (self.transform(image) if self.transform else image), scene.label
        if self.patch is None:
            return item
        centres = scene.mask[self.patch // 2 :: self.patch, self.patch // 2 :: self.patch]
        return (*item, torch.from_numpy(centres.astype(np.int64)))


class SceneSegmentation(Dataset[tuple[Any, torch.Tensor]]):
    """Scenes as a segmentation data set: (PIL image, (S, S) int64 mask), 0 the background and d + 1 the digit d.

    Args:
        split, length, seed: see ``SceneClassification``.
        transform: from (PIL image, mask) to what an item is.
    """

    classes: ClassVar[tuple[str, ...]] = ("background", *(str(d) for d in range(NUM_CLASSES)))
    palette: ClassVar[tuple[tuple[int, int, int], ...]] = (
        (0, 0, 0),
        (230, 25, 75),
        (60, 180, 75),
        (255, 225, 25),
        (67, 99, 216),
        (245, 130, 49),
        (145, 30, 180),
        (66, 212, 244),
        (240, 50, 230),
        (191, 239, 69),
        (250, 190, 212),
    )

    def __init__(
        self,
        split: str,
        length: int,
        seed: int = 0,
        transform: Callable[[Image.Image, torch.Tensor], tuple[Any, torch.Tensor]] | None = None,
    ) -> None:
        check_set(length, seed)
        self.split, self.length, self.seed, self.transform = split, length, seed, transform

    def __len__(self) -> int:
        return self.length

    def image(self, index: int) -> Image.Image:
        """Scene ``index`` as a picture."""
        return Image.fromarray(compose(self.seed, index, self.split).image)

    def digest(self) -> str:
        """Identity of the set."""
        return f"scene-masks-{GENERATOR}-{self.split}-{self.seed}-{self.length}"

    def __getitem__(self, index: int) -> tuple[Any, torch.Tensor]:
        if not 0 <= index < self.length:
            raise IndexError(index)
        scene = compose(self.seed, index, self.split)
        image, mask = Image.fromarray(scene.image), torch.from_numpy(scene.mask.astype(np.int64))
        return self.transform(image, mask) if self.transform else (image, mask)
