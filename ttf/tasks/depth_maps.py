"""What a depth model predicts for some images, uncompressed and with several methods, as pictures and as PNGs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor, nn

import ttf
from ttf.data.depth_protocol import whole_millimetres
from ttf.data.files import atomic_write, check_replaceable
from ttf.data.reading import SIXTEEN_BITS
from ttf.report.depth_maps import Example, Predicted, figure
from ttf.tasks.depth import Depth
from ttf.tasks.pictures import drawn, item_at, left, ways


def _abs_rel(task: Depth, depth: Tensor, truth: Tensor) -> float | None:
    errors = task.protocol.errors(depth, truth)
    return None if errors is None else errors[3].item()


def _example(task: Depth, model: nn.Module, position: int, methods: Mapping[str, dict[str, Any]]) -> Example:
    picture, truth = item_at(task, position)
    image, size = task.resizing.prepare(picture), (truth.shape[0], truth.shape[1])
    depth = task.resizing.depth(model, image, size).cpu()
    found = {"uncompressed": Predicted(depth, None, _abs_rel(task, depth, truth))}
    for title, options in methods.items():
        with ttf.applied(model, **options), torch.inference_mode():
            depth = task.resizing.depth(model, image, size).cpu()
            found[title] = Predicted(depth, left(model, image.unsqueeze(0)), _abs_rel(task, depth, truth))
    valid = torch.where(task.protocol.valid(truth), truth, 0.0)
    return Example(picture, valid, found)


def is_depth_map(path: Path) -> bool:
    """Whether a file is a picture of one channel of 16 bits."""
    try:
        with Image.open(path) as image:
            return image.mode in SIXTEEN_BITS
    except Exception:  # no picture, for whatever reason
        return False


def write_png(depth: Tensor, path: Path) -> None:
    """A depth map (H, W) in metres as a PNG of 16 bits, whole millimetres, truncated.

    Raises:
        ValueError: ``path`` is something else than a depth map, or cannot be written.
    """
    check_replaceable(path, is_depth_map, "a depth map")
    stored = Image.fromarray(whole_millimetres(depth).numpy().astype("uint16"))
    atomic_write(path, lambda temporary: stored.save(temporary, format="PNG"))


def picture(cfg: DictConfig, path: Path, positions: Sequence[int] | None) -> list[Path]:
    """Draw the images at ``positions`` of the shuffle (None: all of them); what was written.

    With ``cfg.depth_png`` the predictions are written, too: FOLDER/POSITION_WAY.png, the uncompressed model's as way 0.

    Raises:
        ValueError: the model is not for depth, there is no such image, or see ``pictures.chosen``.
    """
    _, found = drawn(cfg, Depth, _example, positions, ways)
    figure([example for _, example in found], path)
    written = [path]
    for position, example in found:
        for way, predicted in enumerate(example.predictions.values() if cfg.depth_png else ()):
            written.append(Path(cfg.depth_png) / f"{position}_{way}.png")
            write_png(predicted.depth, written[-1])
    return written
