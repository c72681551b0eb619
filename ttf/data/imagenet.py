"""ImageNet in its public layout: ``ROOT/val/<wnid>/*``, and any subset or relative of it in the same layout."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image
from timm.data import ImageNetInfo
from torch.utils.data import Dataset

from ttf.data.reading import OTHER_SUFFIXES, SUFFIXES, lines_digest, read_image, shown, size_of
from ttf.data.subset import Shuffled
from ttf.errors import MissingError

VAL_NAME = re.compile(r"ILSVRC2012_val_\d{8}\.JPEG")
TRAIN_NAME = re.compile(r"n\d{8}_\d+\.JPEG")
CLASSES = 1000
SHOWN = 4
VALPREP = "https://raw.githubusercontent.com/soumith/imagenetloader.torch/master/valprep.sh"
TREE = "expected ROOT/val/<wnid>/*.JPEG, for example ROOT/val/n01440764/ILSVRC2012_val_00000293.JPEG"


@cache
def _labels() -> dict[str, int]:
    """Label of each of the 1000 ImageNet-1k classes by its WordNet id."""
    return {wnid: label for label, wnid in enumerate(ImageNetInfo("imagenet-1k").label_names())}


@dataclass(frozen=True)
class Whole:
    """What a complete set has: images in all, and the fewest and the most of a class."""

    images: int
    fewest: int
    most: int


WHOLE = {"val": Whole(50_000, 50, 50), "train": Whole(1_281_167, 732, 1300)}


def _listing(folder: Path) -> tuple[list[str], list[str]]:
    """Sorted names of the sub-folders and of the images in ``folder``.

    Raises:
        ValueError: images in formats that are not read here.
    """
    folders, images, others = [], [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            suffix = os.path.splitext(entry.name)[1].lower()
            if suffix in SUFFIXES:
                images.append(entry.name)
            elif suffix in OTHER_SUFFIXES:
                others.append(entry.name)
            elif entry.is_dir():
                folders.append(entry.name)
    if others:
        raise ValueError(
            f"{shown(folder)} has {len(others)} images in other formats ({shown(min(others))}), and only JPEG and PNG "
            "are read: convert them, or move them elsewhere"
        )
    return sorted(folders), sorted(images)


def _of_classes(folder: Path) -> dict[str, list[str]]:
    """Names of the images by WordNet id. Raises ``ValueError`` for another layout or an unknown class."""
    folders, loose = _listing(folder)
    flat = sum(VAL_NAME.fullmatch(name) is not None for name in loose)
    if flat:
        raise ValueError(
            f"{folder} holds {flat} images outside of class folders, as they come out of the tar: move them into "
            f"folders by class, for example by running {VALPREP} in {folder}; {TREE}"
        )
    unknown = [name for name in folders if name not in _labels()]
    if unknown or not folders:
        what = f"{', '.join(unknown[:SHOWN])} in {folder} are no ImageNet-1k classes"
        raise ValueError(f"{what if unknown else f'no classes in {folder}'}: {TREE}")
    return {name: _of_class(folder / name) for name in folders}


def _of_class(folder: Path) -> list[str]:
    """Names of the images of a class. Raises ``ValueError`` for folders within, whose images are not read."""
    within, images = _listing(folder)
    seen = [name for name in within if not name.startswith((".", "@", "__"))]  # not what systems put there
    if seen:
        raise ValueError(f"{shown(folder / seen[0])} is a folder within a class, and is not read: move its images up")
    return images


def _kind(images: dict[str, list[str]], split: str) -> str | None:
    """Which of ImageNet's own sets the files are from, by their names: "val", "train" or None."""
    patterns = {"val": VAL_NAME} | ({"train": TRAIN_NAME} if split == "train" else {})
    for kind, pattern in patterns.items():
        if any(pattern.fullmatch(name) for names in images.values() for name in names):
            return kind
    return None


def _check_whole(images: dict[str, list[str]], whole: Whole, folder: Path) -> None:
    counts = {wnid: len(images.get(wnid, ())) for wnid in _labels()}
    off = [wnid for wnid, count in counts.items() if not whole.fewest <= count <= whole.most]
    total, present = sum(counts.values()), sum(count > 0 for count in counts.values())
    if not off and total == whole.images:
        return
    shown = [f"{wnid} ({f'{counts[wnid]} images' if counts[wnid] else 'missing'})" for wnid in off[:SHOWN]]
    which = f", for example {', '.join(shown)}" if shown else ""
    raise ValueError(
        f"ImageNet in {folder} is not complete: it has {present} of {CLASSES} classes and {total} of {whole.images} "
        f"images{which}; extract it again, or use it as a subset: task.data.imagenet.complete=false for "
        "ttf eval, data.train.complete=false data.test.complete=false for ttf finetune"
    )


class ImageNetFolder(Dataset[tuple[Any, int]]):
    """Images of ``ROOT/<split>/<wnid>/`` with the labels of ImageNet-1k; any subset of classes and images.

    Args:
        root: folder of the data set.
        split: sub-folder, "val" or "train".
        transform: from a PIL image to a tensor.
        complete: whether all images of ImageNet's set must be there; None: where files have its names, such as
            ILSVRC2012_val_00000293.JPEG.

    Raises:
        MissingError: no such folder.
        ValueError: no class folder in it, an unknown class, an empty class folder, images outside of
            class folders, or a set that is not complete.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "val",
        transform: Callable[[Image.Image], Any] | None = None,
        complete: bool | None = None,
    ) -> None:
        self.folder, self.transform = Path(root) / split, transform
        if not self.folder.is_dir():
            raise MissingError(f"no ImageNet at {self.folder}: set paths.imagenet=ROOT; {TREE}")
        images = _of_classes(self.folder)
        kind = _kind(images, split) if complete is None else "train" if split == "train" else "val"
        if complete is not False and kind is not None:
            _check_whole(images, WHOLE[kind], self.folder)
        empty = [name for name, files in images.items() if not files]
        if empty:
            where = self.folder / empty[0]
            raise ValueError(f"the class folder {where} is empty: extract the data set again, or remove the folder")
        labels = _labels()
        self.samples = [(self.folder / wnid / file, labels[wnid]) for wnid, files in images.items() for file in files]

    def __len__(self) -> int:
        return len(self.samples)

    def image(self, index: int) -> Image.Image:
        """Image ``index`` as RGB. Raises ``BadImageError`` (a ``ValueError``) naming a file that cannot be read."""
        return read_image(self.samples[index][0])

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = self.image(index)
        return (self.transform(image) if self.transform else image), self.samples[index][1]

    def digest(self) -> str:
        """Identity of the set: sha256 over the names and byte counts of its files."""
        return lines_digest(f"{file.parent.name}/{file.name} {size_of(file)} {label}" for file, label in self.samples)


class ImageNetPart(ImageNetFolder):
    """Some images of a seeded shuffle: those that ``ttf eval`` with the same ``limit``, ``skip`` and ``seed`` looks at.

    Args:
        limit: how many.
        skip: how many are left out first.
        seed: of the shuffle.
        **folder: as for ``ImageNetFolder``.

    Raises:
        ValueError: as ``ImageNetFolder``, or fewer than ``limit`` images behind ``skip``.
    """

    def __init__(self, limit: int, skip: int = 0, seed: int = 0, **folder: Any) -> None:
        super().__init__(**folder)
        chosen = Shuffled(self, limit, seed, skip).indices
        if len(chosen) < limit:
            raise ValueError(f"limit={limit}, and {self.folder} has {len(chosen)} images behind {skip}: take fewer")
        self.samples = [self.samples[index] for index in chosen]
