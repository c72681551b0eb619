"""Semantic segmentation in public layouts: ADE20K, Cityscapes, CamVid; and how images are varied in training.

An item is (image, mask): a PIL image and an (H, W) int64 tensor of labels 0 to K - 1, or 255 where nothing counts.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from ttf.data.reading import SUFFIXES, lines_digest, read_image, size_of
from ttf.errors import MissingError

IGNORED = 255
SHOWN = 4
Colour = tuple[int, int, int]
Transform = Callable[[Image.Image, Tensor], tuple[Any, Tensor]]


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(", "))


def _colours(digits: str) -> tuple[Colour, ...]:
    """Colours from six hexadecimal digits each."""
    values = bytes.fromhex(digits)
    return tuple(zip(values[::3], values[1::3], values[2::3], strict=True))


def _table(labels: dict[int, int]) -> np.ndarray:
    """(256,) int64: stored value -> label, -1 where a value is not allowed."""
    table = np.full(256, -1, np.int64)
    table[list(labels)] = list(labels.values())
    return table


class SegmentationFolder(Dataset[tuple[Any, Tensor]]):
    """Base of the data sets.

    Args:
        root: folder of the data set.
        split: see the data set.
        transform: from (PIL image, mask) to what an item is, for example ``Augmentation``.

    Attributes:
        samples: pairs of files (image, mask), sorted.
        classes, palette: names and colours of the K classes.
        tree: what the folder has to look like.
        stored: see ``table``.

    Raises:
        ValueError: no such folder, no images in it, images without masks.
    """

    classes: ClassVar[tuple[str, ...]]
    palette: ClassVar[tuple[Colour, ...]]
    tree: ClassVar[str]
    stored: ClassVar[np.ndarray]
    default_split: ClassVar[str] = "val"

    def __init__(self, root: str | Path, split: str | None = None, transform: Transform | None = None) -> None:
        self.root, self.split, self.transform = Path(root), split or self.default_split, transform
        name = type(self).__name__
        folder = self.image_folder()
        if not folder.is_dir():
            raise MissingError(f"no {name} at {folder}: set paths.{name.lower()}=ROOT; expected {self.tree}")
        images = sorted(file for file in folder.rglob("*") if self.is_image(file))
        if not images:
            raise ValueError(f"no images of {name} in {folder}: expected {self.tree}")
        self.samples = [(image, self.mask_file(image)) for image in images]
        missing = [str(mask) for _, mask in self.samples if not mask.is_file()]
        if missing:
            listed = ", ".join(missing[:SHOWN]) + (", ..." if len(missing) > SHOWN else "")
            raise ValueError(f"{len(missing)} of {len(images)} images have no mask: {listed}; expected {self.tree}")

    def image_folder(self) -> Path:
        """The folder with the images of the split."""
        return self.root / "images" / self.split

    def is_image(self, file: Path) -> bool:
        """Whether a file below that folder is an image of the set."""
        return file.suffix.lower() in SUFFIXES

    def mask_file(self, image: Path) -> Path:
        """The mask that belongs to an image."""
        return self.root / "annotations" / self.split / f"{image.stem}.png"

    def table(self, mask: Path) -> np.ndarray:
        """(256,) int64, the label of each value that is stored in a mask, -1 where there is none."""
        return self.stored

    def __len__(self) -> int:
        return len(self.samples)

    def image(self, index: int) -> Image.Image:
        """Image ``index`` as RGB. Raises ``BadImageError`` (a ``ValueError``) naming a file that cannot be read."""
        return read_image(self.samples[index][0])

    def mask(self, index: int) -> Tensor:
        """Mask ``index``, (H, W) int64.

        Raises:
            BadImageError: the file cannot be read.
            ValueError: the file holds colours, or labels that the data set does not have.
        """
        path = self.samples[index][1]
        stored = read_image(path, rgb=False)
        if stored.mode not in ("L", "P"):
            raise ValueError(f"{path} is a picture of mode {stored.mode}: masks have one channel of 8-bit labels")
        values, table = np.asarray(stored), self.table(path)
        wrong = [int(value) for value in np.flatnonzero(np.bincount(values.ravel(), minlength=256)) if table[value] < 0]
        if wrong:
            allowed = np.flatnonzero(table >= 0).tolist()
            raise ValueError(
                f"{path} has labels {wrong[:SHOWN]}, and {type(self).__name__} has {_ranges(allowed)}: "
                "extract the data set again"
            )
        return torch.from_numpy(table[values])

    def __getitem__(self, index: int) -> tuple[Any, Tensor]:
        image, mask = self.image(index), self.mask(index)
        height, width = mask.shape
        if image.size != (width, height):
            file, other = self.samples[index]
            sizes = f"{image.size[0]}x{image.size[1]} pixels and its mask {other} has {width}x{height}"
            raise ValueError(f"{file} has {sizes}: extract the data set again")
        return self.transform(image, mask) if self.transform else (image, mask)

    def digest(self) -> str:
        """Identity of the set: sha256 over the names and byte counts of its files."""
        files = (file for sample in self.samples for file in sample)
        return lines_digest(f"{file.relative_to(self.root).as_posix()} {size_of(file)}" for file in files)


def _ranges(values: list[int]) -> str:
    """Sorted numbers in few words: 0-33, 255."""
    starts = [value for value in values if value - 1 not in values]
    ends = [value for value in values if value + 1 not in values]
    return ", ".join(f"{a}-{b}" if a < b else f"{a}" for a, b in zip(starts, ends, strict=True))


ADE20K_NAMES = (
    "wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person, earth, "
    "door, table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea, mirror, rug, "
    "field, armchair, seat, fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion, base, box, column, "
    "signboard, chest of drawers, counter, sand, sink, skyscraper, fireplace, refrigerator, grandstand, path, "
    "stairs, runway, case, pool table, pillow, screen door, stairway, river, bridge, bookcase, blind, coffee "
    "table, toilet, flower, book, hill, bench, countertop, stove, palm, kitchen island, computer, swivel chair, "
    "boat, bar, arcade machine, hovel, bus, towel, light, truck, tower, chandelier, awning, streetlight, booth, "
    "television receiver, airplane, dirt track, apparel, pole, land, bannister, escalator, ottoman, bottle, "
    "buffet, poster, stage, van, ship, fountain, conveyer belt, canopy, washer, plaything, swimming pool, stool, "
    "barrel, basket, waterfall, tent, bag, minibike, cradle, oven, ball, food, step, tank, trade name, microwave, "
    "pot, animal, bicycle, lake, dishwasher, screen, blanket, sculpture, hood, sconce, vase, traffic light, tray, "
    "ashcan, fan, pier, crt screen, plate, monitor, bulletin board, shower, radiator, glass, clock, flag"
)
ADE20K_COLOURS = (
    "787878b4787806e6e650323204c8037878508c8c8ccc05ffe6e6e604fa07e005ffebff0796053d78784608ff33ff06528fff8cccff04"
    "ff3307cc46030066c83de6faff06330b66ffff0747ff09e00907e6dcdcdcff095c7009ff08ffd607ffe0ffb8060aff47ff290a07ffff"
    "e0ff086608ffff3d06ffc207ff7a0800ff14ff0829ff05990633ffeb0cffa0961400a3ff8c8c8cfa0a0f14ff001fff00ff1f00ffe000"
    "99ff000000ffff470000ebff00adff1f00ff0bc8c8ff520000fff5003dff00ff7000ff85ff0000ffa300ff6600c2ff00008fff33ff00"
    "0052ff00ff2900ffad0a00ffadff0000ff99ff5c00ff00ffff00f5ff0066ffad00ff0014ffb8b8001fff00ff3d0047ffff00cc00ffc2"
    "00ff52000aff0070ff3300ff00c2ff007aff00ffa3ff990000ff0aff70008fff005200ffa3ff00ffeb0008b8aa8500ff00ff5cb800ff"
    "ff001f00b8ff00d6ffff00705cff0000e0ff70e0ff46b8a0a300ff9900ff47ff00ff00a3ffcc00ff008f00ffeb85ff00ff00ebf500ff"
    "ff007afff5000abed4d6ff0000ccff1400ffffff000099ff0029ff00ffcc2900ff29ff00ad00ff00f5ff4700ff7a00ff00ffb8005cff"
    "b8ff000085ffffd60019c2c266ff005c00ff"
)


class ADE20K(SegmentationFolder):
    """ADE20K as in the scene parsing challenge of 2016; splits "validation" (2000 images) and "training".

    Stored values 1-150 are labels 0-149, 0 is ignored.
    """

    classes = _names(ADE20K_NAMES)
    palette = _colours(ADE20K_COLOURS)
    tree = "ROOT/images/validation/*.jpg and ROOT/annotations/validation/*.png (ADEChallengeData2016)"
    default_split = "validation"
    stored = _table({0: IGNORED, **{label + 1: label for label in range(150)}})


class CamVid(SegmentationFolder):
    """CamVid in SegNet's 11 classes; splits "train" (367 images), "val" (101), "test" (233). 11 is ignored."""

    classes = _names("sky, building, pole, road, pavement, tree, sign, fence, car, pedestrian, bicyclist")
    palette = _colours("808080800000c0c0808040803c28de808000c080804040804000804040000080c0")
    tree = "ROOT/images/test/*.jpg and ROOT/annotations/test/*.png (CamVid, 11 classes)"
    default_split = "test"
    stored = _table({**{label: label for label in range(11)}, 11: IGNORED})


class Cityscapes(SegmentationFolder):
    """Cityscapes, 19 classes; splits "val" (500 images) and "train".

    Masks hold the 34 official ids (``*_labelIds.png``) or, where these are absent, the 19 labels
    (``*_labelTrainIds.png``); what is in neither is ignored.
    """

    classes = _names(
        "road, sidewalk, building, wall, fence, pole, traffic light, traffic sign, vegetation, terrain, sky, person, "
        "rider, car, truck, bus, train, motorcycle, bicycle"
    )
    palette = _colours(
        "804080f423e846464666669cbe9999999999faaa1edcdc006b8e2398fb98"
        "4682b4dc143cff000000008e000046003c640050640000e6770b20"
    )
    tree = "ROOT/leftImg8bit/val/<city>/*_leftImg8bit.png and ROOT/gtFine/val/<city>/*_gtFine_labelIds.png"
    evaluated = (7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33)  # ids of labels 0 to 18
    stored = _table({**dict.fromkeys((*range(34), IGNORED), IGNORED), **{i: n for n, i in enumerate(evaluated)}})
    labels = _table({label: label for label in (*range(19), IGNORED)})

    def image_folder(self) -> Path:
        """See ``SegmentationFolder.image_folder``."""
        return self.root / "leftImg8bit" / self.split

    def is_image(self, file: Path) -> bool:
        """See ``SegmentationFolder.is_image``."""
        return file.name.endswith("_leftImg8bit.png")

    def mask_file(self, image: Path) -> Path:
        """See ``SegmentationFolder.mask_file``."""
        scene = image.name.removesuffix("_leftImg8bit.png")
        folder = self.root / "gtFine" / self.split / image.parent.name
        ids, labels = (folder / f"{scene}_gtFine_{kind}.png" for kind in ("labelIds", "labelTrainIds"))
        return labels if labels.is_file() and not ids.is_file() else ids

    def table(self, mask: Path) -> np.ndarray:
        """See ``SegmentationFolder.table``."""
        return self.labels if mask.name.endswith("labelTrainIds.png") else self.stored


class Augmentation:
    """Training images: random size, flip and colours, then a crop; (PIL image, mask) to (3, h, w) float32 and (h, w).

    What the crop lacks is filled with 0 in the normalised image, and is ignored.

    Args:
        crop: (height, width) in pixels.
        shorter: the shorter side gets half to twice this many pixels.
        mean, std: per channel, for values in [0, 1].
    """

    def __init__(
        self,
        crop: tuple[int, int],
        shorter: int,
        mean: tuple[float, ...] = (0.5,) * 3,
        std: tuple[float, ...] = (0.5,) * 3,
    ) -> None:
        sides = list(range(shorter // 2, 2 * shorter + 1))
        self.steps = v2.Compose(
            [
                v2.RandomShortestSize(sides, max_size=4 * sides[-1]),
                v2.RandomHorizontalFlip(),
                v2.RandomPhotometricDistort(),
                v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
                v2.Normalize(mean, std),
                v2.RandomCrop(crop, pad_if_needed=True, fill={tv_tensors.Image: 0.0, tv_tensors.Mask: IGNORED}),
            ]
        )

    def __call__(self, image: Image.Image, mask: Tensor) -> tuple[Tensor, Tensor]:
        pixels, labels = self.steps(tv_tensors.Image(v2.functional.pil_to_tensor(image)), tv_tensors.Mask(mask.byte()))
        return pixels.as_subclass(Tensor), labels.as_subclass(Tensor).long()
