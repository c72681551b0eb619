"""What a task is: a data set, how images come before the model, and what is measured of each image."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from ttf.building import build
from ttf.data.subset import ImageSet, Shuffled
from ttf.results.store import Row

Compression = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Outcomes:
    """What was measured.

    Attributes:
        images: outcomes image by image, (n, ...) each.
        bad: names of the files that could not be read (left out).
    """

    images: dict[str, Tensor]
    bad: list[str]

    @property
    def count(self) -> int:
        """Number of images."""
        return len(next(iter(self.images.values())))


def progress(label: str) -> Progress:
    """A bar over images."""
    return Progress(TextColumn(label), BarColumn(), MofNCompleteColumn(), TextColumn("images"), TimeRemainingColumn())


class Task(ABC):
    """One task on one data set; a subclass is the ``_target_`` of a config in ``configs/task``.

    Args:
        cfg: the composed config of ``scripts/eval.py``.

    Attributes:
        data: the images that are evaluated, in order.

    Raises:
        ValueError: the data set is not there, or a limit below 1.
    """

    input_size: tuple[int, int, int]

    def __init__(self, cfg: DictConfig) -> None:
        self.cfg = cfg
        self.set: ImageSet = build(cfg.task.data[cfg.task.dataset])
        self.data = Shuffled(self.set, cfg.limit, cfg.seed)
        self.digest = self.set.digest()

    def settings(self) -> Row:
        """What of the task can change the numbers: part of a row's identity."""
        return {"name": self.cfg.task.name, "dataset": self.cfg.task.dataset}

    def check_positions(self, positions: Sequence[int]) -> None:
        """Raise ``ValueError`` where there is no image at a position of the shuffle."""
        outside = [position for position in positions if not 0 <= position < len(self.data)]
        if outside:
            there = f"there are {len(self.data)}, from 0 on (limit={self.cfg.limit})"
            raise ValueError(f"no image at {outside}: {there}")

    @abstractmethod
    def adopt(self, model: nn.Module) -> Row:
        """Take on the model's preprocessing and ``input_size`` (3, H, W); the preprocessing in plain values."""

    @abstractmethod
    def images(self, positions: Sequence[int]) -> Tensor:
        """The preprocessed images (B, 3, H, W) at ``positions`` of the shuffle, as far as there are so many."""

    @abstractmethod
    def outcomes(self, model: nn.Module, weights: str, compression: Compression | None, label: str) -> Outcomes:
        """Run the model over the data, uncompressed and compressed.

        Args:
            model: uncompressed, on its device, in its dtype.
            weights: fingerprint of its state dict.
            compression: compresses the model for the length of a ``with`` block; None: it stays uncompressed.
            label: for the progress bar.
        """

    @abstractmethod
    def metrics(self, images: dict[str, Tensor]) -> dict[str, dict[str, Any]]:
        """Means and 95 % intervals of outcomes: name to value and ci95."""
