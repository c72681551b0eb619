"""NYUv2 in its layouts, sets of depth with faults, and how images are varied in training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.depth_frames import LAYOUTS, SIZE, bts, mat
from ttf.data import nyuv2 as layouts
from ttf.data.depth import Augmentation, RedKitchen, read_depth
from ttf.data.depth_protocol import Protocol
from ttf.data.nyuv2 import nyuv2
from ttf.data.reading import BadImageError
from ttf.errors import MissingError


@pytest.mark.parametrize("make", LAYOUTS)
def test_the_layouts_hold_the_same(make: Callable[[Path], None], tmp_path: Path):
    make(tmp_path)
    data = nyuv2(tmp_path)
    assert len(data) == 2 and data.protocol == Protocol()
    for index in range(2):
        image, depth = data[index]
        assert image.size == (640, 480) and image.getpixel((320, 240)) == (40 + 50 * index,) * 3
        assert depth.dtype == torch.float32 and depth.shape == SIZE
        assert depth[0, 0].item() == pytest.approx(1.5 + index, abs=1e-6) and depth[100, 310].item() == 0
    assert data.digest() == nyuv2(tmp_path).digest()
    with pytest.raises(IndexError):
        data[2]


def test_a_mat_file_gets_the_black_border_of_the_conversion(tmp_path: Path):
    mat(tmp_path)
    pixels = np.asarray(nyuv2(tmp_path).image(0))
    assert [bool(pixels[r, c].any()) for r, c in ((6, 300), (7, 300), (473, 300), (474, 300))] == [
        False,
        True,
        True,
        False,
    ]
    assert [bool(pixels[200, c].any()) for c in (6, 7, 631, 632)] == [False, True, True, False]
    assert len(nyuv2(tmp_path, split="train")) == 1


def test_mat_files_with_faults(tmp_path: Path):
    mat(tmp_path)
    (tmp_path / layouts.SPLITS).unlink()
    with pytest.raises(ValueError, match=r"says not which images are for testing: put .*splits\.mat"):
        nyuv2(tmp_path)
    (tmp_path / layouts.SPLITS).write_bytes(b"no such thing" * 40)
    with pytest.raises(ValueError, match=r"splits\.mat holds no testNdxs"):
        nyuv2(tmp_path)
    mat(tmp_path)
    (tmp_path / layouts.LABELED).write_bytes(b"no such thing" * 40)
    with pytest.raises(ValueError, match="truncated or corrupt.*download it again"):
        nyuv2(tmp_path)


def test_a_missing_set_is_told_where_to_get(tmp_path: Path):
    with pytest.raises(
        MissingError, match=r"set paths\.nyuv2=ROOT; fetch http\S+nyu_depth_v2_labeled\.mat.*BTS.*gt/<room>"
    ):
        nyuv2(tmp_path / "none")
    with pytest.raises(MissingError, match=r"set paths\.redkitchen=ROOT"):
        RedKitchen(tmp_path)


def test_missing_partners_are_named(tmp_path: Path):
    bts(tmp_path)
    (tmp_path / "official_splits" / "test" / "kitchen" / "sync_depth_00001.png").unlink()
    with pytest.raises(ValueError, match="1 of 2 images have no depth: .*sync_depth_00001.png"):
        nyuv2(tmp_path)
    (tmp_path / "official_splits" / "train").mkdir()
    with pytest.raises(ValueError, match="no images in"):
        nyuv2(tmp_path, split="train")


WRONG = {
    "another size": (np.full((240, 320), 900, np.uint16), "has 320x240 pixels and its image 640x480"),
    "float": (np.full(SIZE, 1.5, np.float32), "holds floating-point values"),
    "8 bits": (np.full(SIZE, 90, np.uint8), "holds 8-bit values"),
    "colours": (np.full((*SIZE, 3), 90, np.uint8), "holds RGB values"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_depths_that_are_none(wrong: str, tmp_path: Path):
    bts(tmp_path)
    values, said = WRONG[wrong]
    file = tmp_path / "official_splits" / "test" / "kitchen" / "sync_depth_00000.png"
    Image.fromarray(values).save(file, format="TIFF" if values.dtype == np.float32 else "PNG")
    with pytest.raises(ValueError, match=said):
        nyuv2(tmp_path)[0]
    file.write_bytes(b"no picture")
    with pytest.raises(BadImageError, match=r"sync_depth_00000\.png"):
        read_depth(file)


def test_a_crop_looks_nearer_and_flips_with_its_depth():
    columns = np.tile(np.arange(64, dtype=np.uint8) * 4, (48, 1))
    image = Image.fromarray(np.stack([columns] * 3, -1))
    depth = torch.arange(1.0, 65.0).tile(48, 1)  # as bright as it is far
    torch.manual_seed(0)
    step, seen = Augmentation((24, 32), smallest=0.5), set()
    step.colours.transforms = step.colours.transforms[1:]  # colours as they are
    for _ in range(8):
        pixels, metres = step(image, depth)
        assert pixels.shape == (3, 24, 32) and metres.shape == (24, 32)
        away = (pixels[0, 12] * 0.5 + 0.5) * 255 / 4 + 1
        share = (metres[12] / away).median().item()
        assert 0.45 <= share <= 1.02 and (metres[12] - share * away).abs().max() < 3
        seen.add(bool(metres[12, 0] < metres[12, -1]))
    assert seen == {True, False}
    with pytest.raises(ValueError, match=r"augment\.smallest must be in \(0, 1\]"):
        Augmentation((24, 32), smallest=0.0)


@pytest.mark.real
def test_the_red_kitchen_is_what_its_readme_says(shared: Path):
    sets = {split: RedKitchen(shared / "data" / "redkitchen", split) for split in ("train", "test")}
    assert {split: len(data) for split, data in sets.items()} == {"train": 257, "test": 67}
    image, depth = sets["test"][0]
    assert image.size == (640, 480) and depth.shape == SIZE and 0.7 < depth[depth > 0].min() < depth.max() < 5
