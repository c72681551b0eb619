"""Segmentation data sets: their layouts, their labels, augmentation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ttf.data.reading import BadImageError
from ttf.data.segmentation import ADE20K, Augmentation, CamVid, Cityscapes, SegmentationFolder

HEIGHT, WIDTH = 6, 8


def _save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def _picture(path: Path) -> None:
    _save(path, np.full((HEIGHT, WIDTH, 3), 100, np.uint8))


def _mask(path: Path, *values: int) -> None:
    _save(path, np.resize(np.array(values, np.uint8), (HEIGHT, WIDTH)))


def _ade20k(root: Path) -> Path:
    for stem in ("b", "a"):
        _picture(root / "images" / "validation" / f"{stem}.jpg")
        _mask(root / "annotations" / "validation" / f"{stem}.png", 0, 1, 150)
    return root / "annotations" / "validation" / "a.png"


def _camvid(root: Path) -> Path:
    _picture(root / "images" / "test" / "a.png")
    _mask(root / "annotations" / "test" / "a.png", 0, 10, 11)
    return root / "annotations" / "test" / "a.png"


def _cityscapes(root: Path, kind: str = "labelIds", *values: int) -> Path:
    scene = "ulm_000000_000019"
    _picture(root / "leftImg8bit" / "val" / "ulm" / f"{scene}_leftImg8bit.png")
    mask = root / "gtFine" / "val" / "ulm" / f"{scene}_gtFine_{kind}.png"
    _mask(mask, *values or (0, 7, 33, 24))
    return mask


def test_ade20k_labels_are_shifted_by_one(tmp_path: Path):
    _ade20k(tmp_path)
    data = ADE20K(tmp_path)
    image, mask = data[0]
    assert [file.stem for file, _ in data.samples] == ["a", "b"]
    assert (image.size, image.mode) == ((WIDTH, HEIGHT), "RGB")
    assert mask.shape == (HEIGHT, WIDTH) and mask.dtype == torch.int64
    assert mask.unique().tolist() == [0, 149, 255]
    assert len(data.classes) == len(data.palette) == 150
    assert (data.classes[0], data.classes[149], data.palette[149]) == ("wall", "flag", (92, 0, 255))


def test_camvid_has_eleven_classes_and_a_void(tmp_path: Path):
    _camvid(tmp_path)
    data = CamVid(tmp_path, "test")
    assert data[0][1].unique().tolist() == [0, 10, 255]
    assert len(data.classes) == len(data.palette) == 11
    assert (data.classes[3], data.palette[3]) == ("road", (128, 64, 128))


def test_cityscapes_ids_become_the_nineteen_labels(tmp_path: Path):
    _cityscapes(tmp_path, "labelIds", *range(34))
    data = Cityscapes(tmp_path)
    flat = data[0][1].flatten()[:34].tolist()
    assert [(i, label) for i, label in enumerate(flat) if label != 255] == [
        (7, 0),
        (8, 1),
        (11, 2),
        (12, 3),
        (13, 4),
        (17, 5),
        (19, 6),
        (20, 7),
        (21, 8),
        (22, 9),
        (23, 10),
        (24, 11),
        (25, 12),
        (26, 13),
        (27, 14),
        (28, 15),
        (31, 16),
        (32, 17),
        (33, 18),
    ]
    assert (data.classes[11], data.palette[18]) == ("person", (119, 11, 32))


def test_cityscapes_takes_labels_where_there_are_no_ids(tmp_path: Path):
    _cityscapes(tmp_path, "labelTrainIds", 0, 18, 255)
    assert Cityscapes(tmp_path)[0][1].unique().tolist() == [0, 18, 255]
    _cityscapes(tmp_path, "labelIds", 24)
    assert Cityscapes(tmp_path)[0][1].unique().tolist() == [11]
    _cityscapes(tmp_path, "labelIds", 34, 40, 7)
    with pytest.raises(ValueError, match=r"labels \[34, 40\], and Cityscapes has 0-33, 255"):
        Cityscapes(tmp_path)[0]


SETS = [(_ade20k, ADE20K), (_camvid, CamVid), (_cityscapes, Cityscapes)]


@pytest.mark.parametrize(("make", "kind"), SETS, ids=lambda value: value.__name__)
def test_broken_sets_name_the_file(make: Callable[[Path], Path], kind: type[SegmentationFolder], tmp_path: Path):
    with pytest.raises(ValueError, match=rf"no {kind.__name__} at .*paths\.{kind.__name__.lower()}=ROOT; expected R"):
        kind(tmp_path)
    mask = make(tmp_path)
    before = kind(tmp_path).digest()
    assert kind(tmp_path).digest() == before
    _mask(mask, 200)
    with pytest.raises(ValueError, match=rf"{mask.name} has labels \[200\], and {kind.__name__} has "):
        kind(tmp_path)[0]
    assert kind(tmp_path).digest() != before
    _picture(mask)
    with pytest.raises(ValueError, match=rf"{mask.name} is a picture of mode RGB"):
        kind(tmp_path)[0]
    _save(mask, np.zeros((HEIGHT, WIDTH + 1), np.uint8))
    with pytest.raises(ValueError, match=rf"has 8x6 pixels and its mask .*{mask.name} has 9x6"):
        kind(tmp_path)[0]
    mask.write_bytes(b"no picture")
    with pytest.raises(BadImageError, match=rf"{mask.name} cannot be read"):
        kind(tmp_path)[0]
    mask.unlink()
    with pytest.raises(ValueError, match=rf"1 of . images have no mask: .*{mask.name}; expected ROOT"):
        kind(tmp_path)


def test_a_broken_image_and_an_empty_folder_are_named(tmp_path: Path):
    _camvid(tmp_path)
    image = tmp_path / "images" / "test" / "a.png"
    image.write_bytes(image.read_bytes()[:40])
    with pytest.raises(BadImageError, match=r"a\.png cannot be read"):
        CamVid(tmp_path)[0]
    image.unlink()
    with pytest.raises(ValueError, match="no images of CamVid in .*expected ROOT/images/test"):
        CamVid(tmp_path)


def test_augmentation_moves_image_and_mask_together():
    rows = torch.arange(48).unsqueeze(1).expand(48, 64)
    image = Image.fromarray((rows * 5).byte().unsqueeze(-1).expand(-1, -1, 3).contiguous().numpy())
    vary = Augmentation((40, 40), shorter=48)
    vary.steps.transforms = [step for step in vary.steps.transforms if "Photometric" not in type(step).__name__]
    for _ in range(20):
        pixels, mask = vary(image, rows)
        assert pixels.shape == (3, 40, 40) and pixels.dtype == torch.float32
        assert mask.shape == (40, 40) and mask.dtype == torch.int64
        inside = mask != 255
        assert bool((pixels[0][~inside] == 0).all())
        drawn = (pixels[0][inside] + 1) * 255 / 10
        assert (drawn - mask[inside]).abs().max() < 1.6  # a pixel or so of interpolation


def test_augmentation_varies_size_side_and_colours():
    generator = torch.Generator().manual_seed(0)
    image = Image.fromarray(torch.randint(0, 256, (40, 60, 3), generator=generator).byte().numpy())
    vary, mask = Augmentation((40, 40), shorter=40), torch.zeros(40, 60, dtype=torch.int64)
    found = [vary(image, mask) for _ in range(8)]
    assert all(not torch.equal(found[0][0], other) for other, _ in found[1:])
    filled = {int((labels == 255).sum()) for _, labels in found}
    assert len(filled) > 1 and 0 in filled  # smaller images leave something to fill up


@pytest.mark.real
def test_camvid_is_what_the_readme_says(shared: Path):
    sets = {split: CamVid(shared / "data" / "camvid", split) for split in ("train", "val", "test")}
    assert {split: len(data) for split, data in sets.items()} == {"train": 367, "val": 101, "test": 233}
    counts = torch.stack([torch.bincount(sets["val"][i][1].flatten(), minlength=256) for i in range(0, 101, 10)]).sum(0)
    assert {CamVid.classes[i] for i in counts[:11].topk(2).indices} == {"building", "road"}
