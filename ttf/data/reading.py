"""Reading one image file: whatever is wrong with it, the error names the file.

EXIF orientation is not applied, as in torchvision's ``ImageFolder`` and the evaluations that the papers report.
"""

from __future__ import annotations

import hashlib
import os
import stat
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

SUFFIXES = {".jpeg", ".jpg", ".png"}
OTHER_SUFFIXES = {
    *(".webp", ".heic", ".heif", ".avif", ".jxl", ".jp2", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jfif")
}
LONGEST = 1000  # sides of a picture: once the shorter is resized, a longer one would not fit in memory
SIXTEEN_BITS = {"I;16", "I;16B", "I;16L", "I;16N", "I"}  # Pillow's modes of PNG with 16 bits of grey


def shown(path: str | Path) -> str:
    """A path that any terminal and any JSON takes: bytes that are not UTF-8 are written as backslash and number."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


class BadImageError(ValueError):
    """An image file that cannot be read; the message names it.

    Args:
        path: the file.
        reason: what the decoder said.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path

    @property
    def name(self) -> str:
        """Of the file, as it can be printed."""
        return shown(self.path.name)

    def __str__(self) -> str:
        said = " ".join(str(self.args[1]).split())
        return f"{shown(self.path)} cannot be read ({said}): replace it, or set on_bad_image=skip"


def _eight_bits(image: Image.Image) -> Image.Image:
    """Sixteen bits of grey by their upper eight; Pillow itself would cut off at 255, which is almost black."""
    values = np.asarray(image).astype(np.int64)
    if values.min(initial=0) < 0 or values.max(initial=0) > 0xFFFF:
        raise ValueError("grey values outside of 16 bits")
    return Image.fromarray((values >> 8).astype(np.uint8))


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("floating-point values are no picture")
    return (_eight_bits(image) if image.mode in SIXTEEN_BITS else image).convert("RGB")


def _check_sides(image: Image.Image) -> None:
    """Raise ``ValueError`` for sides that no photograph has, before a single pixel is decoded.

    The limit of the pixels is Pillow's, ``PIL.Image.MAX_IMAGE_PIXELS``.
    """
    width, height = image.size
    most = Image.MAX_IMAGE_PIXELS
    if most is not None and width * height > most:
        raise ValueError(f"it is said to have {width}x{height} pixels, more than {most / 1e6:.0f} million")
    if max(width, height) > LONGEST * max(1, min(width, height)):
        raise ValueError(f"it is said to have {width}x{height} pixels, {LONGEST} times as many one way as the other")


def read_image(path: Path, rgb: bool = True) -> Image.Image:
    """The image in a file.

    Args:
        path: JPEG or PNG.
        rgb: as 8-bit RGB (of 16 bits of grey the upper 8, transparency left out); otherwise as it is stored.

    Raises:
        BadImageError: there is no such regular file, or it cannot be decoded, for whatever reason.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ValueError("it is not a regular file")
        # Pillow warns of sizes, which are checked here, and of EXIF and profiles, which are not read
        with warnings.catch_warnings(action="ignore"), Image.open(path) as image:
            _check_sides(image)
            return _as_rgb(image) if rgb else image.copy()
    except Exception as error:  # what decoders raise is no closed list
        raise BadImageError(path, str(error) or type(error).__name__) from error


def lines_digest(lines: Iterable[str]) -> str:
    """sha256 over lines of text, such as a file's name and its ``size_of``; names need not be UTF-8."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(f"{line}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def size_of(path: Path) -> int:
    """Bytes of a file, -1 where there is none behind its name: a digest of a data set is made before files are read."""
    try:
        return os.stat(path).st_size
    except OSError:
        return -1
