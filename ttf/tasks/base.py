"""What a task is: a data set, how images come before the model, and what is measured of each image."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

import ttf
from ttf import processes
from ttf.data.reading import BadImageError
from ttf.data.subset import ImageSet, OnBadImage, Shuffled, check_on_bad_image, readable
from ttf.metrics import measure
from ttf.metrics.outcomes import count, stack
from ttf.results.store import Row

SHOWN = 4
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
        return count(self.images)


class Bar:
    """A progress bar over images: below the bar of a sweep where there is one, else alone.

    Args:
        label: what is being done.
        total: number of images.
    """

    sweep: ClassVar[Progress | None] = None

    def __init__(self, label: str, total: int) -> None:
        self.label, self.total = label, total

    def __enter__(self) -> Bar:
        self._progress = Bar.sweep or progress(disable=not processes.is_main())
        self._own = Bar.sweep is None
        if self._own:
            self._progress.start()
        self._task = self._progress.add_task(self.label, total=self.total)
        return self

    def advance(self, images: int = 1) -> None:
        self._progress.advance(self._task, images)

    def __exit__(self, *_: object) -> None:
        if self._own:
            self._progress.stop()
        else:
            self._progress.remove_task(self._task)


def progress(unit: str = "images", disable: bool = False) -> Progress:
    """A bar with its label, counts and the time that is left."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit))
    return Progress(*columns, TimeRemainingColumn(), disable=disable)


@contextmanager
def within(sweep: Progress) -> Iterator[None]:
    """Bars over images appear below the bar of a sweep."""
    Bar.sweep = sweep
    try:
        yield
    finally:
        Bar.sweep = None


class Task(ABC):
    """One task on one data set. Configs in ``configs/task`` name a subclass; it can as well be made without them.

    Args:
        data: the data set.
        model: what is evaluated, with its weights; None: ``adopt`` is called later.
        limit: the first images of a seeded shuffle; None: all.
        skip: images of it that are left out first.
        seed: of the shuffle.
        batch_size: images (or windows of an image) that go through the model together.
        workers: processes that read images.
        on_bad_image: "stop" or "skip" at an image that cannot be read.
        cache: folder for predictions of uncompressed models; None: they are computed every time.

    Attributes:
        name: its key in rows and in ``ttf.metrics``.
        set: the data set.
        data: the images that are evaluated, in order.
        digest: identity of the data set.

    Raises:
        ValueError: a limit below 1, or another word for ``on_bad_image``.
    """

    name: ClassVar[str]
    input_size: tuple[int, int, int]

    def __init__(
        self,
        data: ImageSet,
        model: nn.Module | None = None,
        *,
        limit: int | None = None,
        skip: int = 0,
        seed: int = 0,
        batch_size: int = 50,
        workers: int = 0,
        on_bad_image: OnBadImage = "stop",
        cache: str | Path | None = None,
    ) -> None:
        check_on_bad_image(on_bad_image)
        self.set, self.data, self.digest = data, Shuffled(data, limit, seed, skip), data.digest()
        self.batch_size, self.workers, self.on_bad_image = batch_size, workers, on_bad_image
        self.cache, self.model = None if cache is None else Path(cache), model
        if model is not None:
            self.adopt(model)

    def evaluate(self, **reduction: Any) -> dict[str, dict[str, Any]]:
        """Metrics of the model, compressed as ``ttf.apply(model, **reduction)`` says; without arguments uncompressed.

        Returns:
            Name of the metric to its value and ci95, see ``ttf.metrics``.

        Raises:
            ValueError: the task was made without a model, or as ``ttf.apply``.
        """
        if self.model is None:
            raise ValueError(f"there is nothing to evaluate: {type(self).__name__}(model=MODEL, data=DATA)")
        compression = partial(ttf.applied, self.model, **reduction) if reduction else None
        return self.metrics(self.outcomes(self.model, compression, None, "evaluating").images)

    def check_positions(self, positions: Sequence[int]) -> None:
        """Raise ``ValueError`` where there is no image at a position of the shuffle."""
        outside = [position for position in positions if not 0 <= position < len(self.data)]
        if outside:
            more = ", ..." if len(outside) > SHOWN else ""
            listed = f"[{', '.join(map(str, outside[:SHOWN]))}{more}]"
            raise ValueError(f"no image at {listed}: there are {len(self.data)}, from 0 on")

    @abstractmethod
    def adopt(self, model: nn.Module) -> Row:
        """Take on the model's preprocessing and ``input_size`` (3, H, W); the preprocessing in plain values."""

    @abstractmethod
    def images(self, positions: Sequence[int]) -> Tensor:
        """The preprocessed images (B, 3, H, W) at ``positions`` of the shuffle, as far as there are so many."""

    @abstractmethod
    def outcomes(self, model: nn.Module, compression: Compression | None, baseline: Row | None, label: str) -> Outcomes:
        """Run the model over the data, uncompressed and compressed; several processes share the images.

        Args:
            model: uncompressed, on its device, in its dtype.
            compression: compresses the model for the length of a ``with`` block; None: it stays uncompressed.
            baseline: what predictions of the uncompressed model depend on, for the cache; None: they are not kept.
            label: for the progress bar.
        """

    def timed(self, model: nn.Module) -> dict[str, nn.Module]:
        """Parts of a model that are timed by themselves, modules from images, beside the whole; none by default."""
        return {}

    def one_by_one(self, label: str, outcome: Callable[[int, Any], dict[str, Tensor]]) -> Outcomes:
        """Outcomes where every image is seen alone; processes share the images.

        Args:
            label: for the progress bar.
            outcome: from an index of the set and its item to what is measured; it may raise ``BadImageError``.

        Raises:
            ValueError: an image that cannot be read, with on_bad_image="stop", or not a single one that can.
        """
        found: list[tuple[int, dict[str, Tensor] | BadImageError]] = []
        share = processes.mine(range(len(self.data)))
        with Bar(label, len(share)) as bar:
            for place, position in share:
                index, item = self.data[position]
                error = readable(item, self.on_bad_image) if isinstance(item, ValueError) else None
                found.append((place, error or self._measured(outcome, index, item)))
                bar.advance()
        every = processes.together(found)
        bad = [one.name for one in every if isinstance(one, BadImageError)]
        good = [one for one in every if not isinstance(one, BadImageError)]
        if not good:
            raise ValueError(f"not a single image could be read: {', '.join(bad[:4])}")
        return Outcomes(stack(good), bad)

    def _measured(
        self, outcome: Callable[[int, Any], dict[str, Tensor]], index: int, item: Any
    ) -> dict[str, Tensor] | BadImageError:
        """What is measured of an image; where there is nothing to measure, why, if such images are skipped."""
        try:
            return outcome(index, item)
        except BadImageError as error:
            return readable(error, self.on_bad_image)

    def metrics(self, images: dict[str, Tensor]) -> dict[str, dict[str, Any]]:
        """Values and 95 % intervals of outcomes, by name of the metric."""
        return measure(self.name, images)
