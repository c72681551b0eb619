"""95 % intervals of the figures that tables show."""

from __future__ import annotations

import math

from torch import Tensor

Z95 = 1.959964


def proportion(hits: int, n: int) -> tuple[float, float]:
    """Wilson's interval of a proportion: hits of n, as a pair of shares in [0, 1]."""
    if n == 0:
        raise ValueError("no interval without any image")
    share, z2 = hits / n, Z95**2 / n
    centre, half = share + z2 / 2, Z95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n))
    return max(0.0, (centre - half) / (1 + z2)), min(1.0, (centre + half) / (1 + z2))


def mean(values: Tensor) -> tuple[float, float]:
    """Normal interval of the mean of independent values (n,)."""
    centre = values.double().mean().item()
    half = Z95 * values.double().std().item() / math.sqrt(len(values)) if len(values) > 1 else math.inf
    return centre - half, centre + half
