"""Files that say they are larger than they are: refused in one line that names them, before memory is asked for."""

from __future__ import annotations

import json
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.depth_frames import mat
from ttf.data import nyuv2 as layouts
from ttf.data.depth import read_depth
from ttf.data.detection import CocoFormat, voc_objects
from ttf.data.nyuv2 import nyuv2
from ttf.data.reading import BadImageError, read_image
from ttf.models.checkpoint_files import read

SIDES = {
    "square": (100_000, 100_000),
    "between Pillow's limits": (12_000, 12_000),
    "tall": (1, 60_000_000),
    "wide": (5_000, 4),
    "wide and grey": (70_000, 10),
    "nothing": (0, 8),
}


def _png(width: int, height: int, kind: int = 2) -> bytes:
    """A PNG of some bytes that declares a size; ``kind`` 0: 16 bits of grey."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 16 if kind == 0 else 8, kind, 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


@pytest.mark.parametrize("name", SIDES)
def test_pictures(name: str, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(_png(*SIDES[name]))
    (tmp_path / "depth.png").write_bytes(_png(*SIDES[name], kind=0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Pillow's warning of large pictures would come beside the line
        with pytest.raises(BadImageError, match=r"x\.png cannot be read \(.+\): replace it") as caught:
            read_image(tmp_path / "x.png")
        assert "\n" not in str(caught.value)
        with pytest.raises(BadImageError, match=r"depth\.png cannot be read"):
            read_depth(tmp_path / "depth.png")


def _shape(name: str, shape: tuple[int, ...], kind: str = "u1") -> Callable[[Path], None]:
    """Other contents of the file of images, which take no room: nothing of them is stored."""

    def change(root: Path) -> None:
        import h5py

        with h5py.File(root / layouts.LABELED, "a") as file:
            del file[name]
            file.create_dataset(name, shape, kind, chunks=(1, *(min(one, 64) for one in shape[1:])))

    return change


def _group(root: Path) -> None:
    import h5py

    with h5py.File(root / layouts.LABELED, "a") as file:
        del file["images"]
        file.create_group("images")


def _dangling(root: Path) -> None:
    import h5py

    with h5py.File(root / layouts.LABELED, "a") as file:
        del file["rawDepths"]
        file["rawDepths"] = h5py.SoftLink("/nowhere")


def _numbers(values: Any) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        from scipy.io import savemat

        savemat(root / layouts.SPLITS, {"testNdxs": values}, do_compression=True)

    return change


LIES: dict[str, tuple[Callable[[Path], None], str]] = {
    "images of terabytes": (_shape("images", (3, 3, 1_000_000, 1_000_000)), "has 3 x 3 x 1000000 x 1000000 values of"),
    "depths of terabytes": (_shape("rawDepths", (3, 1_000_000, 1_000_000), "f4"), "in rawDepths, not N x 640 x 480"),
    "too few": (_shape("images", (2, 3, 640, 480)), "has 2 images, and image 3 is asked for"),
    "images of floats": (_shape("images", (3, 3, 640, 480), "f8"), "values of float64 in images"),
    "depths of words": (_shape("rawDepths", (3, 640, 480), "S9"), r"in rawDepths, not N x 640 x 480"),
    "a group": (_group, "has no values in images"),
    "a link to nowhere": (_dangling, "lacks rawDepths"),
    "numbers of megabytes": (_numbers(np.ones((3000, 3000))), "said to have 3000 x 3000 of them"),
    "image 0": (_numbers([[0]]), "numbers in testNdxs that are none of images"),
    "no numbers": (_numbers(np.ones((0, 1))), "numbers in testNdxs that are none of images"),
}


@pytest.mark.parametrize("name", LIES)
def test_nyuv2(name: str, tmp_path: Path) -> None:
    mat(tmp_path)
    change, said = LIES[name]
    change(tmp_path)
    with pytest.raises(ValueError, match=said) as caught:
        nyuv2(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def _annotations(**changes: Any) -> str:
    box = {"id": 1, "image_id": 7, "category_id": 3, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0} | changes
    image = {"id": 7, "file_name": box.pop("file_name", "7.png"), "width": 10**12, "height": 10**12}
    return json.dumps({"images": [image], "annotations": [box], "categories": [{"id": 3, "name": "cat"}]})


BOXES: dict[str, tuple[str, str]] = {
    "nested": ("[" * 100_000, "cannot be read as json"),
    "endless number": (_annotations(bbox=[1, 2, 10**400, 4]), "COCO's format does not allow"),
    "huge box": (_annotations(bbox=[1, 2, 1e300, 4]), "has the box"),
    "words": (_annotations(bbox="1234"), "has the box 1234"),
    "infinite area": (_annotations(area=float("inf")), "has the area inf"),
    "area of words": (_annotations(area="12"), "COCO's format does not allow"),
    "crowd of words": (_annotations(iscrowd="no"), "has iscrowd 'no'"),
    "name of numbers": (_annotations(file_name=5), "has the file_name 5"),
    "name with a zero": (_annotations(file_name="a\0b"), "has the file_name"),
    "entries of words": ('{"images": [], "annotations": ["a"], "categories": []}', "COCO's format does not allow"),
}


@pytest.mark.parametrize("name", BOXES)
def test_coco(name: str, tmp_path: Path) -> None:
    text, said = BOXES[name]
    (tmp_path / "val2017").mkdir()
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_val2017.json").write_text(text)
    with pytest.raises(ValueError, match=said) as caught:
        CocoFormat(tmp_path)
    assert "\n" not in str(caught.value)


CORNERS = "<xmin>{}</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax>"


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e300", "-1e12", "1" * 400])
def test_voc(value: str, tmp_path: Path) -> None:
    box = f"<bndbox>{CORNERS.format(value)}</bndbox>"
    (tmp_path / "x.xml").write_text(f"<annotation><object><name>RBC</name>{box}</object></annotation>")
    with pytest.raises(ValueError, match=r"x\.xml has a box that is none"):
        voc_objects(tmp_path / "x.xml", {"RBC": 0})


def test_weights(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(4)}, tmp_path / "ok.pth")
    with zipfile.ZipFile(tmp_path / "ok.pth") as ok, zipfile.ZipFile(tmp_path / "x.pth", "w", 8) as bomb:
        for part in ok.infolist():
            bomb.writestr(part.filename, bytes(8 << 20) if part.filename.endswith("data/0") else ok.read(part))
    with pytest.raises(ValueError, match=r"x\.pth is said to hold 8 MiB, many times its own size"):
        read(tmp_path / "x.pth")
