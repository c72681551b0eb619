"""Which images of a set are evaluated, and what happens to one that cannot be read."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from ttf.data.reading import BadImageError

OnBadImage = Literal["stop", "skip"]


class ImageSet(Protocol):
    """What tasks expect of a data set."""

    transform: Any

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> tuple[Any, ...]: ...
    def image(self, index: int) -> Any: ...
    def digest(self) -> str: ...


class Shuffled(Dataset[Any]):
    """``limit`` images of a seeded shuffle, each as (index in the set, item or the error of reading it).

    Errors are items, since an exception loses its type and its message on the way out of a process that reads images.

    Args:
        data: the whole set.
        limit: how many; None or more than there are: all.
        seed: of the shuffle.
        skip: how many are left out first.

    Raises:
        ValueError: ``limit`` below 1, or no image left behind ``skip``.
    """

    def __init__(self, data: ImageSet, limit: int | None = None, seed: int = 0, skip: int = 0) -> None:
        if not len(data):
            raise ValueError("the data set has no images: choose a longer one")
        if limit is not None and limit < 1:
            raise ValueError(f"limit must be at least 1, got {limit}")
        if skip < 0 or (skip and skip >= len(data)):
            raise ValueError(f"skip={skip} leaves no image: there are {len(data)}")
        self.data = data
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
        self.indices: list[int] = order[skip:][:limit].tolist()

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> tuple[int, Any]:
        index = self.indices[position]
        try:
            return index, self.data[index]
        except ValueError as error:
            return index, error


class Remembered(Dataset[Any]):
    """The items of a small set, kept in memory from one evaluation of a sweep to the next.

    Args:
        data: what to remember; must fit in memory.
        key: identity of the items: the set, the order, the preprocessing. Another key forgets the former set.
    """

    _key: ClassVar[object] = None
    _items: ClassVar[dict[int, Any]] = {}

    def __init__(self, data: Shuffled, key: object) -> None:
        self.data = data
        if key != Remembered._key:
            Remembered._key, Remembered._items = key, {}

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, position: int) -> tuple[int, Any]:
        if position not in self._items:
            self._items[position] = self.data[position]
        return self._items[position]


def check_on_bad_image(value: str) -> None:
    """Raise ``ValueError`` for another word than stop and skip."""
    if value not in ("stop", "skip"):
        raise ValueError(f"on_bad_image must be stop or skip, got {value!r}")


Batch = tuple[list[int], Any, list[ValueError]]


def collate(items: list[tuple[int, Any]]) -> Batch:
    """Indices of the readable items, these as a batch (None where there are none), and the errors of the others."""
    bad = [item for _, item in items if isinstance(item, ValueError)]
    good = [(index, item) for index, item in items if not isinstance(item, ValueError)]
    return [index for index, _ in good], default_collate([item for _, item in good]) if good else None, bad


def readable(error: ValueError, on_bad_image: OnBadImage) -> BadImageError:
    """The error of an image that is left out. Raises it where it is not of an image, or images must not be left out."""
    if not isinstance(error, BadImageError) or on_bad_image == "stop":
        raise error
    return error


def batched(
    data: Dataset[Any], batches: Any, workers: int, collate_fn: Callable[[list[Any]], Any], **options: Any
) -> Iterator[Any]:
    """Batches of a set, read by processes, of which there are never more than batches.

    Args:
        data: map-style.
        batches: of its keys, with a length.
        workers: processes that read; 0: this one.
        collate_fn: what makes a batch of items.
        **options: of ``DataLoader``.

    Raises:
        ValueError: a process is gone.
    """
    with warnings.catch_warnings():  # that there are fewer cores is the choice of whoever asked for so many
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        processes = min(workers, len(batches))
        loader = DataLoader(data, batch_sampler=batches, num_workers=processes, collate_fn=collate_fn, **options)
        begun = iter(loader)
    return loaded(begun)


def loaded(loader: Iterable[Any]) -> Iterator[Any]:
    """What a loader gives. Raises ``ValueError`` where one of its processes is gone."""
    try:
        yield from loader
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        said = str(error).splitlines()[0]
        raise ValueError(f"a process that reads images ended ({said}): use fewer workers, or workers=0") from error
