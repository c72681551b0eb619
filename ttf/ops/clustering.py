"""What clustering methods share: distances between tokens, and which cluster a token belongs to.

Shapes: B batch, n tokens that take part, m clusters, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ttf.ops.numerics import full_precision

LINKAGES = ("average", "complete", "single")


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


def _linked(linkage: str, one: Tensor, other: Tensor, members: Tensor, others: Tensor) -> Tensor:
    """Distances of the union of two clusters to all others, from those of the two, (B, n) each."""
    if linkage == "average":
        return (one * members + other * others) / (members + others)
    return torch.maximum(one, other) if linkage == "complete" else torch.minimum(one, other)


def agglomerate(between: Tensor, clusters: int, linkage: str = "average") -> Tensor:
    """Agglomerative clustering: the two nearest clusters become one, until so many are left.

    Args:
        between: (B, n, n) distances of the tokens.
        clusters: how many, from 1 to n.
        linkage: the distance of two clusters is the mean ("average"), the largest ("complete") or the smallest
            ("single") of their members' (by the update of Lance and Williams).

    Returns:
        The cluster of every token, (B, n) int64; clusters are numbered in the order of their first tokens.
    """
    batch, n, _ = between.shape
    place = torch.arange(n, device=between.device)
    apart = between.masked_fill(place.unsqueeze(1) == place, torch.inf)  # of clusters, at their first token's place
    members, owner = torch.ones_like(between[:, 0]), place.expand(batch, n)
    for _ in range(n - clusters):
        nearest = apart.flatten(1).argmin(dim=1, keepdim=True)
        pair = torch.cat((nearest // n, nearest % n), dim=1)
        first, second = pair.amin(1, keepdim=True), pair.amax(1, keepdim=True)
        rows = apart.gather(1, torch.cat((first, second), 1).unsqueeze(2).expand(-1, -1, n))
        one, other = members.gather(1, first), members.gather(1, second)
        union = _linked(linkage, rows[:, 0], rows[:, 1], one, other)
        union = union.masked_fill((place == first) | (place == second), torch.inf)
        for at, values in ((first, union), (second, torch.full_like(union, torch.inf))):
            row = at.unsqueeze(2).expand(-1, 1, n)
            apart = apart.scatter_(1, row, values.unsqueeze(1)).scatter_(2, row.transpose(1, 2), values.unsqueeze(2))
        members = torch.where(place == first, one + other, members)
        owner = torch.where(owner == second, first, owner)
    return ((owner == place).cumsum(1) - 1).gather(1, owner)
