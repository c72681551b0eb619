"""Image files that are no images, and names that are none: each error names the file, whoever reads it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from ttf.data.imagenet import ImageNetFolder
from ttf.data.reading import BadImageError, read_image, shown
from ttf.data.subset import Shuffled, batched, collate, loaded, readable

WNID = "n01440764"


def _long_text(path: Path) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "x" * (3 << 20), zip=True)
    Image.new("RGB", (8, 8)).save(path, pnginfo=text)


def _cut(path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:500])


BROKEN: dict[str, Callable[[Path], object]] = {
    "text.png": _long_text,
    "cut.png": _cut,
    "empty.jpg": Path.touch,
    "page.jpg": lambda path: path.write_text("<html>"),
    "gone.jpg": lambda path: path.symlink_to(path.with_name("nowhere")),
    "loop.jpg": lambda path: path.symlink_to(path.name),
    "pipe.jpg": os.mkfifo,
    "folder.jpg": Path.mkdir,
    "numbers.png": lambda path: Image.fromarray(np.zeros((4, 4), np.float32)).save(path, format="TIFF"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_cannot_be_read_is_named(name: str, tmp_path: Path) -> None:
    BROKEN[name](tmp_path / name)
    with pytest.raises(BadImageError, match=rf"{name} cannot be read \(.+\): replace it, or set on_bad_image=skip"):
        read_image(tmp_path / name)


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    folder = tmp_path / "val" / WNID
    folder.mkdir(parents=True)
    for name in ("a.jpg", "b.png"):
        Image.new("RGB", (8, 8), (90, 120, 30)).save(folder / name)
    return tmp_path


def test_all_of_them_in_a_folder_are_left_out_or_stop(photographs: Path) -> None:
    folder = photographs / "val" / WNID
    for name, make in BROKEN.items():
        if not (folder / name).exists():
            make(folder / name)
    data = ImageNetFolder(photographs, transform=lambda image: torch.zeros(3, 8, 8))
    assert len(data.digest()) == 64  # of names and sizes, also where there is nothing behind a name
    _, batch, errors = collate([Shuffled(data)[position] for position in range(len(data))])
    assert len(batch[0]) == 2 and {error.path.name for error in errors} == set(BROKEN)
    assert [readable(error, "skip") for error in errors] == errors
    with pytest.raises(BadImageError):
        readable(errors[0], "stop")
    with pytest.raises(ValueError, match="another"):
        readable(ValueError("another"), "skip")


def test_a_name_that_is_not_utf_8(photographs: Path) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    (photographs / "val" / WNID / name).touch()
    data = ImageNetFolder(photographs)
    assert len(data) == 3 and len(data.digest()) == 64
    with pytest.raises(BadImageError) as caught:
        data.image(2)
    assert "caf\\xe9.jpg cannot be read" in str(caught.value) and str(caught.value).encode()
    assert caught.value.name == shown(name) == "caf\\xe9.jpg"


@pytest.mark.parametrize("suffix", [".webp", ".HEIC", ".bmp", ".tiff", ".gif", ".avif"])
def test_formats_that_are_not_read(photographs: Path, suffix: str) -> None:
    (photographs / "val" / WNID / f"x{suffix}").touch()
    with pytest.raises(ValueError, match=rf"has 1 images in other formats \(x{suffix}\), and only JPEG and PNG"):
        ImageNetFolder(photographs)


def test_sixteen_bits_of_grey_are_not_white(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    Image.fromarray(ramp).save(tmp_path / "grey.png")
    read = np.asarray(read_image(tmp_path / "grey.png"))
    assert read.shape == (16, 16, 3) and np.array_equal(read[..., 0], ramp >> 8) and (read == read[..., :1]).all()


def test_a_process_that_is_gone() -> None:
    def loader():
        yield 1
        raise RuntimeError("DataLoader worker (pid 3) is killed by signal: Killed.")

    with pytest.raises(ValueError, match=r"a process that reads images ended .*: use fewer workers, or workers=0"):
        list(loaded(loader()))


def test_no_more_processes_than_batches() -> None:
    """Nor a word of torch on how many cores there are."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = batched(Shuffled(Numbers()), [[0], [1, 2]], 999, collate)
        assert [len(indices) for indices, _, _ in found] == [1, 2]


class Numbers:
    """A set of three."""

    transform = None

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> tuple[int]:
        return (index,)

    def image(self, index: int) -> int:
        return index

    def digest(self) -> str:
        return "numbers"


def test_orientation_in_exif_is_not_applied(tmp_path: Path) -> None:
    image, exif = Image.new("RGB", (8, 4)), Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").size == (8, 4)
