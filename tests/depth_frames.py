"""NYUv2 with two images, in each of the layouts in which people have it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ttf.data import nyuv2 as layouts

SIZE = (480, 640)


def frame(index: int) -> tuple[np.ndarray, np.ndarray]:
    """Image (H, W, 3) uint8 and raw depth (H, W) in metres, some of it missing."""
    image = np.full((*SIZE, 3), 40 + 50 * index, np.uint8)
    depth = np.full(SIZE, 1.5 + index, np.float32) + 0.0004  # in whole millimetres: truncated
    depth[:, 300:320] = 0
    return image, depth


def bts(root: Path) -> None:
    room = root / "official_splits" / "test" / "kitchen"
    room.mkdir(parents=True)
    for index in range(2):
        write(room / f"rgb_0000{index}.jpg", room / f"sync_depth_0000{index}.png", index)


def write(image: Path, depth: Path, index: int) -> None:
    pixels, metres = frame(index)
    Image.fromarray(pixels).save(image, quality=95)
    Image.fromarray((metres * 1000).astype(np.uint16)).save(depth)


def archive(root: Path) -> None:
    (root / "gt" / "kitchen").mkdir(parents=True)
    for index in range(2):
        write(root / f"kitchen_rgb_0000{index}.jpg", root / "gt" / "kitchen" / f"sync_depth_0000{index}.png", index)


def mat(root: Path) -> None:
    h5py = pytest.importorskip("h5py")
    from scipy.io import savemat

    frames = [frame(0), *(frame(index) for index in range(2))]  # the first one is for training
    with h5py.File(root / layouts.LABELED, "w") as file:  # stored column by column
        file["images"] = np.stack([image.transpose(2, 1, 0) for image, _ in frames])
        file["rawDepths"] = np.stack([depth.T for _, depth in frames])
    savemat(root / layouts.SPLITS, {"testNdxs": [[2], [3]], "trainNdxs": [[1]]})


LAYOUTS = [bts, archive, mat]
