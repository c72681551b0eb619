"""ImageNet in its public layout: ``ROOT/val/<wnid>/*``, and any subset or relative of it in the same layout."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError
from timm.data import ImageNetInfo
from torch.utils.data import Dataset

SUFFIXES = {".jpeg", ".jpg", ".png"}
TREE = "expected ROOT/val/<wnid>/*.JPEG, for example ROOT/val/n01440764/ILSVRC2012_val_00000293.JPEG"


class BadImageError(ValueError):
    """An image file that cannot be read; the message names it.

    Args:
        path: the file.
        reason: what the decoder said.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path

    def __str__(self) -> str:
        return f"{self.args[0]} cannot be read ({self.args[1]}): replace it, or set on_bad_image=skip"


@cache
def _labels() -> dict[str, int]:
    """Label of each of the 1000 ImageNet-1k classes by its WordNet id."""
    return {wnid: label for label, wnid in enumerate(ImageNetInfo("imagenet-1k").label_names())}


def _files(folder: Path) -> list[Path]:
    files = sorted(f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES)
    if not files:
        raise ValueError(f"the class folder {folder} is empty: extract the data set again, or remove the folder")
    return files


class ImageNetFolder(Dataset[tuple[Any, int]]):
    """Images of ``ROOT/<split>/<wnid>/`` with the labels of ImageNet-1k; any subset of classes and images.

    Args:
        root: folder of the data set.
        split: sub-folder, "val".
        transform: from a PIL image to a tensor.

    Raises:
        ValueError: no such folder, no class folder in it, an unknown class, an empty class folder.
    """

    def __init__(
        self, root: str | Path, split: str = "val", transform: Callable[[Image.Image], Any] | None = None
    ) -> None:
        self.folder, self.transform = Path(root) / split, transform
        if not self.folder.is_dir():
            raise ValueError(f"no ImageNet at {self.folder}: set paths.imagenet=ROOT; {TREE}")
        known, folders = _labels(), sorted(f for f in self.folder.iterdir() if f.is_dir())
        unknown = [f.name for f in folders if f.name not in known]
        if unknown or not folders:
            what = f"{', '.join(unknown[:4])} in {self.folder} are no ImageNet-1k classes" if unknown else "no classes"
            raise ValueError(f"{what}: {TREE}")
        self.samples = [(file, known[folder.name]) for folder in folders for file in _files(folder)]

    def __len__(self) -> int:
        return len(self.samples)

    def image(self, index: int) -> Image.Image:
        """Image ``index`` as RGB. Raises ``BadImageError`` (a ``ValueError``) naming a file that cannot be read."""
        path = self.samples[index][0]
        try:
            with Image.open(path) as image:
                return image.convert("RGB")
        except (OSError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            raise BadImageError(path, str(error)) from error

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = self.image(index)
        return (self.transform(image) if self.transform else image), self.samples[index][1]

    def digest(self) -> str:
        """Identity of the set: sha256 over the names and byte counts of its files."""
        digest = hashlib.sha256()
        for file, label in self.samples:
            digest.update(f"{file.parent.name}/{file.name} {file.stat().st_size} {label}\n".encode())
        return digest.hexdigest()
