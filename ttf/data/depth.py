"""Depth: what a data set has to say, sets of frames in files, and how images are varied in training.

An item is (image, depth): a PIL image and an (H, W) float32 tensor of metres, 0 where nothing was measured.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from ttf.data.depth_protocol import MILLIMETRES, Protocol
from ttf.data.reading import SIXTEEN_BITS, SUFFIXES, lines_digest, read_image, size_of
from ttf.errors import MissingError

SHOWN = 4
Transform = Callable[[Image.Image, Tensor], tuple[Any, Tensor]]


def read_depth(path: Path, scale: float = MILLIMETRES) -> Tensor:
    """A depth map of a 16-bit PNG, (H, W) float32 metres.

    Args:
        path: of the file.
        scale: stored values of one metre; 1000 in NYUv2, 256 in KITTI.

    Raises:
        BadImageError: the file cannot be read.
        ValueError: the file holds no 16-bit values.
    """
    stored = read_image(path, rgb=False)
    if stored.mode not in SIXTEEN_BITS:
        kind = {"F": "floating-point", "L": "8-bit", "P": "8-bit"}.get(stored.mode, stored.mode)
        raise ValueError(f"{path} holds {kind} values: depth maps are PNGs of one channel of 16 bits, millimetres")
    return torch.from_numpy(np.asarray(stored).astype(np.float32)) / scale


class DepthSet(Dataset[tuple[Any, Tensor]], ABC):
    """What tasks and training expect of a data set.

    Args:
        transform: from (PIL image, depth) to what an item is, for example ``Augmentation``.
        block: so many neighbouring frames are one block for intervals and tests; 1: images are independent.
        crop, max_depth, truncate: see ``Protocol``.

    Attributes:
        protocol: which pixels count.

    Raises:
        ValueError: a block below 1, or see ``Protocol``.
    """

    def __init__(
        self,
        transform: Transform | None = None,
        block: int = 1,
        crop: str | None = "eigen",
        max_depth: float = 10.0,
        truncate: bool = False,
    ) -> None:
        if block < 1:
            raise ValueError(f"block must be at least 1, got {block}")
        self.transform, self.block = transform, block
        self.protocol = Protocol(crop, max_depth=max_depth, truncate=truncate)

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def image(self, index: int) -> Image.Image:
        """Image ``index`` as RGB. Raises ``BadImageError`` (a ``ValueError``) naming a file that cannot be read."""

    @abstractmethod
    def depth(self, index: int) -> Tensor:
        """Depth ``index``, (H, W) float32 metres, 0 where nothing was measured."""

    @abstractmethod
    def name(self, index: int) -> Path:
        """What a message about item ``index`` names: its file of depth, or a file and a number in it."""

    @abstractmethod
    def digest(self) -> str:
        """Identity of the set."""

    def __getitem__(self, index: int) -> tuple[Any, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        image, depth = self.image(index), self.depth(index)
        if image.size != (depth.shape[1], depth.shape[0]):
            sizes = f"{depth.shape[1]}x{depth.shape[0]} pixels and its image {image.size[0]}x{image.size[1]}"
            raise ValueError(f"{self.name(index)} has {sizes}: extract the data set again")
        return self.transform(image, depth) if self.transform else (image, depth)


class DepthFiles(DepthSet):
    """Pairs of files.

    Args:
        root: folder of the data set.
        samples: pairs of an image and a 16-bit PNG in millimetres, in order.
        tree: what the folder has to look like.
        **options: see ``DepthSet``.

    Raises:
        ValueError: no images, or images without depth.
    """

    def __init__(self, root: Path, samples: Sequence[tuple[Path, Path]], tree: str, **options: Any) -> None:
        super().__init__(**options)
        self.root, self.samples = root, samples
        if not samples:
            raise ValueError(f"no images in {root}: expected {tree}")
        missing = [str(depth) for _, depth in samples if not depth.is_file()]
        if missing:
            listed = ", ".join(missing[:SHOWN]) + (", ..." if len(missing) > SHOWN else "")
            raise ValueError(f"{len(missing)} of {len(samples)} images have no depth: {listed}; expected {tree}")

    def __len__(self) -> int:
        return len(self.samples)

    def image(self, index: int) -> Image.Image:
        """See ``DepthSet.image``."""
        return read_image(self.samples[index][0])

    def depth(self, index: int) -> Tensor:
        """See ``DepthSet.depth`` and ``read_depth``."""
        return read_depth(self.samples[index][1])

    def name(self, index: int) -> Path:
        """See ``DepthSet.name``."""
        return self.samples[index][1]

    def digest(self) -> str:
        """sha256 over the names and byte counts of the files."""
        files = (file for sample in self.samples for file in sample)
        return lines_digest(f"{file.relative_to(self.root).as_posix()} {size_of(file)}" for file in files)


def in_rooms(folder: Path) -> list[tuple[Path, Path]]:
    """BTS's layout: ``FOLDER/ROOM/rgb_NNNNN.jpg`` with ``sync_depth_NNNNN.png`` beside it."""
    images = sorted(file for file in folder.rglob("rgb_*") if file.suffix.lower() in SUFFIXES)
    return [(image, image.with_name(f"sync_depth_{image.stem[4:]}.png")) for image in images]


class RedKitchen(DepthFiles):
    """Frames of one video through a kitchen (7-Scenes, RedKitchen) with measured depth, in BTS's layout.

    Args:
        root: folder of the data set.
        split: "test" (67 frames) or "train" (257).
        **options: see ``DepthSet``.

    Raises:
        MissingError: no such folder.
    """

    tree: ClassVar[str] = "ROOT/official_splits/test/kitchen/rgb_*.jpg and sync_depth_*.png beside each"

    def __init__(self, root: str | Path, split: str = "test", **options: Any) -> None:
        folder = Path(root) / "official_splits" / split
        if not folder.is_dir():
            raise MissingError(f"no red kitchen at {folder}: set paths.redkitchen=ROOT; expected {self.tree}")
        super().__init__(Path(root), in_rooms(folder), self.tree, **options)


class Augmentation:
    """Training images: a crop of random size at the network's own, flip and colours.

    (PIL image, depth) to (3, h, w) float32 and (h, w) metres. A crop of a share f of the sides looks as if everything
    were f times as far away, and depths are multiplied by it: metres stay those of one focal length.

    Args:
        size: (height, width) of what comes out.
        smallest: least share f; the largest is 1.
        mean, std: per channel, for values in [0, 1].

    Raises:
        ValueError: a share outside of (0, 1].
    """

    def __init__(
        self,
        size: tuple[int, int],
        smallest: float = 0.75,
        mean: tuple[float, ...] = (0.5,) * 3,
        std: tuple[float, ...] = (0.5,) * 3,
    ) -> None:
        if not 0 < smallest <= 1:
            raise ValueError(f"augment.smallest must be in (0, 1], got {smallest}")
        self.size, self.smallest = list(size), smallest
        self.flip = v2.RandomHorizontalFlip()
        self.colours = v2.Compose(
            [
                v2.RandomPhotometricDistort(),
                v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
                v2.Normalize(mean, std),
            ]
        )

    def __call__(self, image: Image.Image, depth: Tensor) -> tuple[Tensor, Tensor]:
        share = self.smallest + (1 - self.smallest) * torch.rand(()).item()
        height, width = (round(share * side) for side in depth.shape)
        top = int(torch.randint(depth.shape[0] - height + 1, ()))
        left = int(torch.randint(depth.shape[1] - width + 1, ()))
        place = (..., slice(top, top + height), slice(left, left + width))
        pixels = v2.functional.resize(v2.functional.pil_to_tensor(image)[place], self.size)
        cut = v2.functional.resize(depth[None][place], self.size, v2.InterpolationMode.NEAREST)
        found = self.colours(self.flip(tv_tensors.Image(pixels), tv_tensors.Mask(share * cut)))
        return found[0].as_subclass(Tensor), found[1].as_subclass(Tensor)[0]
