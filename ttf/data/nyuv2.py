"""NYUv2's 654 test images (and 795 for training) in the layouts in which people have them."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ttf.data.depth import DepthFiles, DepthSet, in_rooms
from ttf.data.depth_protocol import MILLIMETRES, whole_millimetres
from ttf.data.reading import SUFFIXES, BadImageError, size_of
from ttf.errors import MissingError

LABELED, SPLITS = "nyu_depth_v2_labeled.mat", "splits.mat"
SITE = "http://horatio.cs.nyu.edu/mit/silberman"
SPLIT_NAMES = {"test": "testNdxs", "train": "trainNdxs"}
SHAPES = {"images": (3, 640, 480), "rawDepths": (640, 480)}  # of one image, stored column by column
VALUES = {"images": "u1", "rawDepths": "f"}
MOST_NUMBERS = 1449  # images in all
BORDER = (slice(7, 474), slice(7, 632))  # what BTS's conversion leaves of an image; the rest is black
AGAIN = "download it again"
TREES = (
    "ROOT/official_splits/test/<room>/rgb_*.jpg with sync_depth_*.png beside each (BTS)",
    "ROOT/<room>_rgb_*.jpg with ROOT/gt/<room>/sync_depth_*.png (DPT's archive, extracted)",
    f"ROOT/{LABELED} and ROOT/{SPLITS}",
)
WHERE = (
    f"fetch {SITE}/nyu_depth_v2/{LABELED} (2.8 GB) and {SITE}/indoor_seg_sup/{SPLITS} into ROOT, or give a ROOT with "
    f"one of these: {'; '.join(TREES)}"
)


class NYUv2(DepthFiles):
    """NYUv2 as files; ``nyuv2`` finds out which layout it is.

    Args:
        root: folder of the data set.
        split: "test" or "train"; DPT's archive has the former alone.
        **options: see ``DepthSet``.
    """

    def __init__(self, root: str | Path, split: str = "test", **options: Any) -> None:
        folder = Path(root) / "official_splits" / split
        samples = in_rooms(folder) if folder.is_dir() else _flat(Path(root))
        super().__init__(Path(root), samples, TREES[not folder.is_dir()], **options)


def _flat(root: Path) -> list[tuple[Path, Path]]:
    """DPT's layout: all images in one folder, with the room in their names; truth in a folder of its own."""
    found = []
    for image in sorted(file for file in root.rglob("*_rgb_*") if file.suffix.lower() in SUFFIXES):
        room, _, number = image.stem.rpartition("_rgb_")
        found.append((image, root / "gt" / room / f"sync_depth_{number}.png"))
    return found


class NYUv2Mat(DepthSet):
    """NYUv2 from its MATLAB files, as BTS converts them: raw depths in whole millimetres, a black border.

    BTS's images went through JPEG, these did not.

    Args:
        root: folder with both files.
        split: "test" or "train".
        **options: see ``DepthSet``.

    Raises:
        ValueError: h5py is not installed, a file cannot be read, or it lacks what it should hold.
    """

    def __init__(self, root: str | Path, split: str = "test", **options: Any) -> None:
        super().__init__(**options)
        self.file, splits = Path(root) / LABELED, Path(root) / SPLITS
        if split not in SPLIT_NAMES:
            raise ValueError(f"split must be one of {', '.join(SPLIT_NAMES)}, got {split!r}")
        if not splits.is_file():
            raise ValueError(
                f"{self.file} says not which images are for testing: put {SITE}/indoor_seg_sup/{SPLITS} beside it"
            )
        self.numbers, self.split = _numbers(splits, SPLIT_NAMES[split]), split
        with self._opened() as file:
            missing = {name for name in SHAPES if file.get(name) is None}
            if missing:
                raise ValueError(f"{self.file} lacks {', '.join(sorted(missing))}: {AGAIN}")
            for name in SHAPES:
                self._check(name, file[name])

    def _check(self, name: str, stored: Any) -> None:
        """Raise ``ValueError`` where a part of the file is not what its images are, before anything of it is read."""
        shape, wanted = tuple(getattr(stored, "shape", ())), SHAPES[name]
        if shape[1:] != wanted or not stored.dtype.str[1:].startswith(VALUES[name]):
            said = f"{' x '.join(map(str, shape))} values of {stored.dtype}" if shape else "no values"
            raise ValueError(f"{self.file} has {said} in {name}, not N x {' x '.join(map(str, wanted))}: {AGAIN}")
        if int(self.numbers.max()) >= shape[0]:
            raise ValueError(f"{self.file} has {shape[0]} {name}, and image {int(self.numbers.max()) + 1} is asked for")

    def _opened(self) -> Any:
        try:
            import h5py
        except ImportError as error:
            raise ValueError(f"{self.file} needs h5py: uv pip install 'ttf[nyu]'") from error
        try:
            return h5py.File(self.file, "r")
        except OSError as error:
            raise ValueError(f"{self.file} is truncated or corrupt ({error}): {AGAIN}") from error

    def _read(self, what: str, index: int) -> Any:
        with self._opened() as file:
            try:
                return np.swapaxes(file[what][int(self.numbers[index])], -1, -2)
            except OSError as error:
                raise BadImageError(self.name(index), f"{what}: {error}") from error

    def __len__(self) -> int:
        return len(self.numbers)

    def image(self, index: int) -> Image.Image:
        """See ``DepthSet.image``."""
        pixels = np.moveaxis(self._read("images", index), 0, -1)
        framed = np.zeros_like(pixels)
        framed[BORDER] = pixels[BORDER]
        return Image.fromarray(np.ascontiguousarray(framed))

    def depth(self, index: int) -> Tensor:
        """See ``DepthSet.depth``; the raw depths, not those that were filled in."""
        raw = torch.from_numpy(np.ascontiguousarray(self._read("rawDepths", index)).astype(np.float32))
        return whole_millimetres(raw.nan_to_num(0.0, 0.0, 0.0)).float() / MILLIMETRES

    def name(self, index: int) -> Path:
        """See ``DepthSet.name``; the number counts from 1."""
        return self.file / str(int(self.numbers[index]) + 1)

    def digest(self) -> str:
        """sha256 over the name and byte count of the file, and the numbers of the images."""
        said = f"{self.file.name} {size_of(self.file)} {self.numbers.tolist()}"
        return hashlib.sha256(said.encode()).hexdigest()


def _numbers(splits: Path, name: str) -> Any:
    """0-based numbers of the images of a split; the file counts from 1."""
    from scipy.io import loadmat, whosmat  # slow to import

    try:
        listed = {one: shape for one, shape, _ in whosmat(splits)}
        if math.prod(listed[name]) > MOST_NUMBERS:
            raise ValueError(f"it is said to have {' x '.join(map(str, listed[name]))} of them")
        found = loadmat(splits, variable_names=[name])[name].ravel().astype(int) - 1
    except Exception as error:  # scipy, zlib and struct have each their own
        raise ValueError(f"{splits} holds no {name} ({error}): {AGAIN}") from error
    if not found.size or found.min() < 0:
        raise ValueError(f"{splits} has numbers in {name} that are none of images: {AGAIN}")
    return found


def nyuv2(root: str | Path, split: str = "test", **options: Any) -> DepthSet:
    """NYUv2, in whichever layout it is: BTS's, DPT's archive or the MATLAB files.

    Args:
        root: folder of the data set.
        split: "test" or "train".
        **options: see ``DepthSet``.

    Raises:
        MissingError: there is none of them.
        ValueError: a layout with parts missing.
    """
    folder = Path(root)
    if (folder / LABELED).is_file() and not (folder / "official_splits").is_dir():
        return NYUv2Mat(folder, split, **options)
    if (folder / "official_splits" / split).is_dir() or (split == "test" and folder.is_dir() and _flat(folder)):
        return NYUv2(folder, split, **options)
    raise MissingError(f"no NYUv2 at {folder}: set paths.nyuv2=ROOT; {WHERE}")
