"""Random pruning, the baseline that any score has to beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ttf.methods.base import LayerView, Method
from ttf.methods.top_k import selection
from ttf.ops.reduction import SelectionReduction
from ttf.ops.transform import select

BITS = 0xFFFFFFFF  # numbers stay below 2 ** 32


def _mixed(number: Tensor) -> Tensor:
    """MurmurHash3's last step: int64 below 2 ** 32, well mixed."""
    number = ((number ^ (number >> 16)) * 0x85EBCA6B) & BITS
    number = ((number ^ (number >> 13)) * 0xC2B2AE35) & BITS
    return number ^ (number >> 16)


def random_order(seed: int, block: int, batch: int, patches: int, device: torch.device) -> Tensor:
    """A number for every token, (B, n) int64: a function of seed, block, image number and position alone.

    A hash, for a generator's numbers would depend on the device and stop ``torch.compile``.
    """
    start = torch.full((1,), seed & BITS, dtype=torch.int64, device=device)
    image = _mixed(_mixed(start) + block + 1) + torch.arange(batch, device=device)
    return _mixed((_mixed(image & BITS).unsqueeze(1) + torch.arange(patches, device=device)) & BITS)


@dataclass(frozen=True)
class RandomPruning(Method):
    """W selects tokens at random, in raster order: others for every image of a batch and every block.

    The same in every run, on every device.

    Attributes:
        seed: of the choice.
    """

    seed: int = 0

    def reduce(self, view: LayerView, keep: int) -> SelectionReduction:
        """See ``Method.reduce``."""
        batch, tokens, _ = view.x.shape
        order = random_order(self.seed, view.block, batch, tokens - view.prefix, view.x.device)
        return selection(view, select(order, keep - view.prefix))
