"""A Swin whose third stage runs on tokens that know their places, all of them, in any order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

import ttf
from ttf.core.tokens import Tokens
from ttf.ops.reduction import SelectionReduction


def _scattered(block: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The tokens of a map in another order for every image, and the way back."""
    x: Tensor = args[0]
    batch, count, _ = x.shape
    generator = torch.Generator().manual_seed(count)
    order = torch.stack([torch.randperm(count, generator=generator) for _ in range(batch)])
    y = x[torch.arange(batch).unsqueeze(1), order]
    back = SelectionReduction(sizes=torch.ones(batch, count), kept=order, columns=count, nearest=order.argsort(1))
    return (Tokens(y, None, order, None, (back,), "nearest"), *args[1:])


@contextmanager
def all_at_their_places(model: Any, window: int) -> Iterator[None]:
    """Inside, attention of the third stage is that of tokens at places, of which none is missing."""
    stages = model.layers if hasattr(model, "layers") else model.stages
    seen: list[type] = []
    with ttf.applied(model, ratio=1.0):
        handles = [stages[2].blocks[0].register_forward_pre_hook(_scattered)]
        handles += [b.register_forward_hook(lambda *given: seen.append(type(given[2]))) for b in stages[2].blocks]
        yield
        assert seen == [Tokens] * len(stages[2].blocks)
        for handle in handles:
            handle.remove()
