"""What clustering methods share: distances between tokens, and which cluster a token belongs to.

Shapes: B batch, n tokens that take part, m clusters, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ttf.ops.numerics import full_precision


def distances(x: Tensor) -> Tensor:
    """Euclidean distances between all tokens, (B, n, C) to (B, n, n) float32, without gradient: they decide only."""
    with full_precision(x):
        tokens = x.detach().float()
        # tokens share a large mean, which costs precision in ||a||^2 - 2 a.b + ||b||^2 and no distance depends on
        tokens = tokens - tokens.mean(dim=1, keepdim=True)
        return torch.cdist(tokens, tokens)


def nearest_centre(between: Tensor, centres: Tensor) -> Tensor:
    """The cluster of every token: that of its nearest centre (the first where several are), centres their own.

    Args:
        between: (B, n, n) distances.
        centres: (B, m) int64, tokens, no two the same.

    Returns:
        (B, n) int64, values in [0, m).
    """
    rows = between.gather(1, centres.unsqueeze(-1).expand(-1, -1, between.shape[2]))
    own = torch.arange(centres.shape[1], device=centres.device).expand_as(centres)
    return rows.argmin(dim=1).scatter(1, centres, own)
