"""Evaluation by several processes (torchrun, accelerate launch): who does what, and how the parts come together."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from typing import Any, TypeVar

import torch

Item = TypeVar("Item")


def count() -> int:
    """Number of processes that were started together; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local() -> int:
    """Number of this process on its machine: that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@cache
def _state() -> Any:
    """The process group: NCCL where every process of this machine has a GPU, else gloo."""
    from accelerate import PartialState

    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    state = PartialState(cpu=torch.cuda.device_count() < here)
    if state.num_processes != count():
        raise ValueError(f"{count()} processes were started, {state.num_processes} have found each other: use torchrun")
    return state


def is_main() -> bool:
    """Whether this process writes and prints."""
    return count() == 1 or _state().is_main_process


def mine(items: Sequence[Item]) -> list[tuple[int, Item]]:
    """The share of this process, each with its place among all."""
    if count() == 1:
        return list(enumerate(items))
    state = _state()
    return [(place, item) for place, item in enumerate(items) if place % state.num_processes == state.process_index]


def together(part: Sequence[tuple[int, Item]]) -> list[Item]:
    """What all processes have made of their shares, in the order of the items; every process gets all."""
    found = list(part)
    if count() > 1:
        from accelerate.utils import gather_object

        _state()
        found = gather_object(found)
    return [item for _, item in sorted(found, key=lambda pair: pair[0])]


def agreed(value: Item) -> Item:
    """The main process's value, on every process."""
    if count() == 1:
        return value
    from accelerate.utils import broadcast_object_list

    _state()
    shared: list[Any] = [value]
    broadcast_object_list(shared)
    answer: Item = shared[0]
    return answer
