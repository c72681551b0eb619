"""Object detection in public layouts: COCO's json, and VOC's xml as BCCD has it.

An item is (image, ``Boxes``): a PIL image and what is labelled on it. Shapes: N boxes, K categories.
"""

from __future__ import annotations

import hashlib
import json
import math
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from xml.etree import ElementTree

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ttf.data.reading import read_image, size_of
from ttf.errors import MissingError

SHOWN = 4
LARGEST = 1e9  # pixels
Transform = Callable[[Image.Image, "Boxes"], tuple[Any, Any]]
Labelled = tuple[Sequence[float], int, float, bool]


@dataclass(frozen=True)
class Boxes:
    """What is labelled on one image.

    Attributes:
        xywh: (N, 4) float64: left, top, width, height in pixels of the image; boxes may lie outside of it.
        labels: (N,) int64, 0 to K - 1.
        areas: (N,) float64 in square pixels, of the mask where the data set has one.
        crowd: (N,) bool: a region of many objects, which counts neither as found nor as missed.
    """

    xywh: Tensor
    labels: Tensor
    areas: Tensor
    crowd: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def xyxy(self) -> Tensor:
        """(N, 4): left, top, right, bottom."""
        return torch.cat((self.xywh[:, :2], self.xywh[:, :2] + self.xywh[:, 2:]), dim=1)

    @classmethod
    def of(cls, objects: Sequence[Labelled]) -> Boxes:
        """From (left, top, width, height), label, area, crowd of each."""
        return cls(
            torch.tensor([one[0] for one in objects], dtype=torch.float64).reshape(-1, 4),
            torch.tensor([one[1] for one in objects], dtype=torch.int64),
            torch.tensor([one[2] for one in objects], dtype=torch.float64),
            torch.tensor([one[3] for one in objects], dtype=torch.bool),
        )


class DetectionSet(Dataset[tuple[Any, Any]]):
    """Base of the data sets.

    Args:
        root: folder of the data set.
        split: see the data set.
        transform: from (PIL image, ``Boxes``) to what an item is.

    Attributes:
        files: the pictures; boxes: what is labelled on each.
        classes: names of the K categories.
        categories: their numbers in the files, which need not be 0 to K - 1.

    Raises:
        MissingError: the data set is not there.
        ValueError: it is damaged or not whole.
    """

    default_split: ClassVar[str]
    classes: tuple[str, ...]
    categories: tuple[int, ...]
    files: list[Path]
    boxes: list[Boxes]

    def __init__(self, root: str | Path, split: str | None = None, transform: Transform | None = None) -> None:
        self.root, self.split, self.transform = Path(root), split or self.default_split, transform
        self.labels_from = self.read()
        missing = [str(file) for file in self.files if not file.is_file()]
        if missing:
            raise ValueError(f"{len(missing)} of {len(self.files)} images are not there: {_some(missing)}")
        if not self.files:
            raise ValueError(f"{_some([str(file) for file in self.labels_from])} lists no images")

    @abstractmethod
    def read(self) -> list[Path]:
        """Fill ``files``, ``boxes``, ``classes`` and ``categories``; the files that the labels come from."""

    def __len__(self) -> int:
        return len(self.files)

    def image(self, index: int) -> Image.Image:
        """Image ``index`` as RGB. Raises ``BadImageError`` (a ``ValueError``) naming a file that cannot be read."""
        return read_image(self.files[index])

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        image, boxes = self.image(index), self.boxes[index]
        return self.transform(image, boxes) if self.transform else (image, boxes)

    @property
    def most(self) -> int:
        """The largest number of boxes on an image."""
        return max(len(boxes) for boxes in self.boxes)

    def digest(self) -> str:
        """Identity of the set: sha256 over the names and byte counts of its images, and over its labels."""
        digest = hashlib.sha256()
        for file, boxes in zip(self.files, self.boxes, strict=True):
            digest.update(f"{file.name} {size_of(file)}\n".encode(errors="surrogateescape"))
            for part in (boxes.xywh, boxes.labels, boxes.areas, boxes.crowd):
                digest.update(part.numpy().tobytes())
        return digest.hexdigest()


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


# COCO


def read_annotations(path: Path) -> dict[str, Any]:
    """A COCO annotation file.

    Raises:
        ValueError: it is no json, no such file, or an annotation names an image or a category that it does not list,
            or has no box of finite numbers.
    """
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        reason = str(error) or type(error).__name__
        raise ValueError(f"{path} cannot be read as json ({reason}): copy or download it again") from error
    lists = ("images", "annotations", "categories")
    lacking = [name for name in lists if not isinstance(content, dict) or not isinstance(content.get(name), list)]
    if lacking:
        raise ValueError(f"{path} has no list of {', '.join(lacking)}: it is no COCO annotation file")
    try:
        _check_annotations(path, content)
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"{path} has an entry that COCO's format does not allow ({error!r})") from error
    return content


def _check_annotations(path: Path, content: dict[str, Any]) -> None:
    known = {name: [entry["id"] for entry in content[name]] for name in ("images", "categories")}
    for name, ids in known.items():
        twice = [str(number) for number, times in Counter(ids).items() if times > 1]
        if twice:
            raise ValueError(f"{path} lists {name} twice: {_some(twice)}")
    images, categories = set(known["images"]), set(known["categories"])
    for entry in content["images"]:
        if not isinstance(entry["file_name"], str) or "\0" in entry["file_name"]:
            raise ValueError(f"{path}: image {entry['id']} has the file_name {entry['file_name']!r}")
    for entry in content["annotations"]:
        which = f"{path}: annotation {entry.get('id')}"
        if entry["image_id"] not in images:
            raise ValueError(f"{which} is of image {entry['image_id']}, which the file does not list")
        if entry["category_id"] not in categories:
            listed = _some([str(number) for number in known["categories"]])
            raise ValueError(f"{which} has category {entry['category_id']}: the file lists {listed}")
        _check_region(which, entry)


def _check_region(which: str, entry: dict[str, Any]) -> None:
    box, area, crowd = entry["bbox"], entry.get("area", 0), entry.get("iscrowd", 0)
    if not isinstance(box, list) or len(box) != 4 or not _plausible(*box) or min(box[2:]) < 0:
        raise ValueError(f"{which} has the box {box}: expected x, y, width, height in pixels")
    if not _plausible(area) or area < 0:
        raise ValueError(f"{which} has the area {area}: expected square pixels")
    if crowd not in (0, 1, None):
        raise ValueError(f"{which} has iscrowd {crowd!r}: expected 0 or 1")


def _plausible(*values: float) -> bool:
    """Whether numbers can be of pixels: finite, and small enough that products of two are exact."""
    return all(math.isfinite(value) and abs(value) < LARGEST for value in values)


def annotated_boxes(content: dict[str, Any]) -> list[Boxes]:
    """The boxes of every image of a COCO annotation file, in the order of its images and annotations."""
    label = {entry["id"]: number for number, entry in enumerate(content["categories"])}
    by_image: dict[Any, list[Labelled]] = {entry["id"]: [] for entry in content["images"]}
    for entry in content["annotations"]:
        x, y, width, height = entry["bbox"]
        area = entry.get("area", width * height)
        crowd = bool(entry.get("iscrowd", 0))
        by_image[entry["image_id"]].append(((x, y, width, height), label[entry["category_id"]], area, crowd))
    return [Boxes.of(by_image[entry["id"]]) for entry in content["images"]]


class CocoFormat(DetectionSet):
    """Any data set with a COCO annotation file.

    Args:
        root, split, transform: see ``DetectionSet``.
        images: folder of the pictures below the root, annotations: the file; {split} stands for the split.
    """

    default_split = "val2017"

    def __init__(
        self, root: str | Path, split: str | None = None, transform: Transform | None = None,
        images: str = "{split}", annotations: str = "annotations/instances_{split}.json",
    ) -> None:  # fmt: skip
        self.folder, self.annotations = images, annotations
        super().__init__(root, split, transform)

    def read(self) -> list[Path]:
        """See ``DetectionSet.read``."""
        path, folder = (self.root / part.format(split=self.split) for part in (self.annotations, self.folder))
        for needed, there in ((path, path.is_file()), (folder, folder.is_dir())):
            if not there:
                raise MissingError(self.missing(needed))
        content = read_annotations(path)
        content["images"].sort(key=lambda entry: entry["id"])  # the order in which the official code takes them
        self.classes = tuple(str(entry.get("name", entry["id"])) for entry in content["categories"])
        self.categories = tuple(entry["id"] for entry in content["categories"])
        self.files = [folder / entry["file_name"] for entry in content["images"]]
        self.boxes = annotated_boxes(content)
        return [path]

    def missing(self, needed: Path) -> str:
        """What to do where the data set is not there."""
        return (
            f"no COCO at {needed}: set paths.coco=ROOT; expected ROOT/val2017/*.jpg (val2017.zip, 5000 images) and "
            "ROOT/annotations/instances_val2017.json (annotations_trainval2017.zip), both from cocodataset.org"
        )


class Coco(CocoFormat):
    """COCO 2017; splits "val2017" (5000 images) and "train2017". 80 categories with numbers from 1 to 90."""


# VOC


def voc_objects(path: Path, label: dict[str, int]) -> list[Labelled]:
    """The objects of an xml of VOC's layout; boxes without any width or height are left out.

    Raises:
        ValueError: no such xml, or an object of another name.
    """
    try:
        found = [(entry.findtext("name", ""), entry.find("bndbox")) for entry in ElementTree.parse(path).iter("object")]
        corners = [[float(box.findtext(name, "")) for name in ("xmin", "ymin", "xmax", "ymax")] for _, box in found]  # type: ignore[union-attr]
    except (OSError, ElementTree.ParseError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as labels of VOC's layout ({error}): copy it again") from error
    odd = [box for box in corners if not _plausible(*box) or box[2] < box[0] or box[3] < box[1]]
    if odd:
        raise ValueError(f"{path} has a box that is none, {odd[0]}: expected xmin, ymin, xmax, ymax in pixels")
    unknown = sorted({name for name, _ in found} - set(label))
    if unknown:
        raise ValueError(f"{path} has objects {_some(unknown)}: known are {', '.join(label)}")
    sizes = [(x, y, right - x, bottom - y) for x, y, right, bottom in corners]
    named = zip(sizes, [label[name] for name, _ in found], strict=True)
    return [(box, number, box[2] * box[3], False) for box, number in named if min(box[2:]) > 0]


class BCCD(DetectionSet):
    """Blood cells (Shenggan/BCCD_Dataset): 364 photographs of 640x480 pixels, three kinds of cells.

    Splits "train" (205 images), "val" (87), "trainval" (both) and "test" (72). Two boxes without any width are left
    out. Root: the folder that holds ``BCCD``.
    """

    default_split = "test"
    classes = ("RBC", "WBC", "Platelets")
    categories = (1, 2, 3)

    def read(self) -> list[Path]:
        """See ``DetectionSet.read``."""
        base = self.root / "BCCD"
        lists = [base / "ImageSets" / "Main" / f"{self.split}.txt"]
        if not base.is_dir():
            raise MissingError(
                f"no BCCD at {base}: set paths.bccd=ROOT; expected ROOT/BCCD/JPEGImages/*.jpg, ROOT/BCCD/Annotations/"
                "*.xml and ROOT/BCCD/ImageSets/Main/test.txt (github.com/Shenggan/BCCD_Dataset, MIT)"
            )
        if not lists[0].is_file():
            raise ValueError(f"no {lists[0]}: the splits of BCCD are train, val, trainval and test")
        names = [name for file in lists for name in file.read_text().split()]
        label = {name: number for number, name in enumerate(self.classes)}
        self.files = [base / "JPEGImages" / f"{name}.jpg" for name in names]
        self.boxes = [Boxes.of(voc_objects(base / "Annotations" / f"{name}.xml", label)) for name in names]
        return lists
