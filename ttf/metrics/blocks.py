"""Estimators over images that come in blocks of neighbours, such as the frames of a video.

Outcomes: the values (n,) of an outcome, and ``block`` (n,) int64, the block that each image belongs to. Neighbouring
frames are nearly copies of each other: intervals come from whole blocks drawn with replacement, and a test compares
blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ttf.metrics import paired
from ttf.metrics.estimators import Difference, Estimator, Test, check_pair
from ttf.metrics.metric import Estimate, ImageOutcomes

BLOCK = "block"
RESAMPLES = 1000
ENDS = torch.tensor([0.025, 0.975], dtype=torch.float64)


def sums_by_block(values: Tensor, block: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of values (n,) over blocks and the numbers of their images, (b,) float64 each."""
    names, place = block.unique(return_inverse=True)
    zeros = torch.zeros(len(names), dtype=torch.float64)
    return zeros.index_add(0, place, values.double()), zeros.index_add(0, place, torch.ones_like(values).double())


def resampled_means(values: Tensor, block: Tensor, times: int = RESAMPLES, seed: int = 0) -> Tensor:
    """Means over the images of sets of blocks that are drawn with replacement, (times,) float64.

    Args:
        values: (n,).
        block: (n,) int64, of each image.
        times: number of sets.
        seed: the same seed and blocks draw the same sets.
    """
    sums, counts = sums_by_block(values, block)
    drawn = torch.randint(len(sums), (times, len(sums)), generator=torch.Generator().manual_seed(seed))
    return sums[drawn].sum(1) / counts[drawn].sum(1)


def _estimate(values: Tensor, block: Tensor) -> Estimate:
    low, high = resampled_means(values, block).quantile(ENDS).tolist()
    return Estimate(values.double().mean().item(), low, high)


def _blocks(outcomes: ImageOutcomes) -> Tensor:
    """Blocks of the images; without any, each image is one."""
    block = outcomes.get(BLOCK)
    return torch.arange(len(next(iter(outcomes.values())))) if block is None else block


def _paired(a: ImageOutcomes, b: ImageOutcomes, name: str) -> tuple[Tensor, Tensor]:
    check_pair(a[name], b[name])
    if not torch.equal(_blocks(a), _blocks(b)):
        raise ValueError("rows over other images, or in another order, cannot be paired: evaluate the same set")
    return a[name].double() - b[name].double(), _blocks(a)


def block_average(name: str) -> Estimator:
    """Mean of an outcome (n,) over images, its interval from blocks drawn with replacement."""
    return lambda outcomes: _estimate(outcomes[name], _blocks(outcomes))


def block_difference(name: str) -> Difference:
    """Mean of the paired differences of an outcome (n,), first minus second, with such an interval."""
    return lambda a, b: _estimate(*_paired(a, b, name))


def block_signed_rank(name: str) -> Test:
    """Wilcoxon's signed-rank test of the blocks' mean differences of an outcome (n,)."""

    def test(a: ImageOutcomes, b: ImageOutcomes) -> float:
        sums, counts = sums_by_block(*_paired(a, b, name))
        means = sums / counts
        return paired.signed_rank(means, torch.zeros_like(means))

    return test
