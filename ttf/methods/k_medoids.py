"""K-Medoids (as in the comparison arXiv 2308.04657): every cluster of patch tokens is replaced by its medoid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ttf.methods.base import LayerView, Method
from ttf.ops.attention import Wanted
from ttf.ops.bipartite import group_sums
from ttf.ops.clustering import distances, nearest_centre
from ttf.ops.reduction import SelectionReduction, behind_prefix

Weights = Literal["equal", "class"]
WEIGHTS = ("equal", "class")


def farthest_tokens(between: Tensor, m: int, first: int) -> Tensor:
    """Token ``first``, then one after the other the token that is farthest from any of those already chosen.

    Args:
        between: (B, n, n) distances.
        m: how many.
        first: index of a token.

    Returns:
        (B, m) int64, no two the same.
    """
    chosen = torch.full_like(between[:, :1, 0], first, dtype=torch.int64)
    farthest = between[:, first]
    for _ in range(m - 1):
        following = farthest.scatter(1, chosen, -1.0).argmax(dim=1, keepdim=True)
        row = between.gather(1, following.unsqueeze(-1).expand(-1, -1, between.shape[2])).squeeze(1)
        chosen, farthest = torch.cat((chosen, following), dim=1), torch.maximum(farthest, row)
    return chosen


def medoids_of(cost: Tensor, clusters: Tensor, m: int) -> Tensor:
    """The member of the lowest cost of every cluster, the first where several are.

    Args:
        cost: (B, n) float32.
        clusters: (B, n) int64, none of the m empty.
        m: number of clusters.

    Returns:
        (B, m) int64.
    """
    members = clusters.unsqueeze(1) == torch.arange(m, device=clusters.device).view(1, m, 1)
    return cost.unsqueeze(1).masked_fill(~members, torch.inf).argmin(dim=2)


def k_medoids(x: Tensor, m: int, iterations: int, weights: Tensor | None, first: int = 0) -> tuple[Tensor, Tensor]:
    """K-Medoids clustering of tokens.

    The cost of a member is its own weight times its distances to all tokens, those of other clusters too.

    Args:
        x: (B, n, C).
        m: number of clusters.
        iterations: how often medoids are chosen anew.
        weights: (B, n), whose m highest are the first medoids; None: all 1, the first medoids are ``farthest_tokens``.
        first: the first medoid where there are no weights.

    Returns:
        medoids (B, m) int64, and the cluster of every token (B, n) int64.
    """
    between = distances(x)
    cost = between.sum(dim=2)
    if weights is None:
        medoids = farthest_tokens(between, m, first)
    else:
        medoids, cost = weights.detach().argsort(dim=1, descending=True)[:, :m], cost * weights.detach()
    for _ in range(iterations):
        medoids = medoids_of(cost, nearest_centre(between, medoids), m)
    return medoids, nearest_centre(between, medoids)


@dataclass(frozen=True)
class KMedoids(Method):
    """W selects the medoids of ``keep`` - P clusters of patch tokens; the other members go nowhere.

    One-hot rows; ``keep`` tokens, in the order of the clusters (``kept``). The clusters say how tokens come back
    (``nearest``), and sizes add up over their members: a medoid stands for its whole cluster.

    Attributes:
        iterations: how often medoids are chosen anew, >= 0.
        weights: "class" (class attention: the highest are the first medoids, and weigh the cost of a medoid) or
            "equal" (the first medoids are far from each other).
        first: patch token that is the first medoid with equal weights, >= 0.
        scaling: later layers add log s to their attention logits (Eq. 7).

    Raises:
        ValueError: a value out of its range.
    """

    iterations: int = 3
    weights: Weights = "class"
    first: int = 0
    scaling: bool = True

    def __post_init__(self) -> None:
        if self.iterations < 0:
            raise ValueError(f"iterations must be at least 0, got {self.iterations}")
        if self.weights not in WEIGHTS:
            raise ValueError(f"weights must be one of {', '.join(WEIGHTS)}, got {self.weights!r}")
        if self.first < 0:
            raise ValueError(f"first is the index of a patch token and must be at least 0, got {self.first}")

    @property
    def wanted(self) -> Wanted:
        return Wanted("class" if self.weights == "class" else None)

    def reduce(self, view: LayerView, keep: int) -> SelectionReduction:
        """See ``Method.reduce``. Raises ``ValueError`` where there is no patch token ``first``."""
        x, prefix = view.x, view.prefix
        if self.weights == "equal" and self.first >= x.shape[1] - prefix:
            raise ValueError(f"first is patch token {self.first}, and there are {x.shape[1] - prefix}")
        weights = None
        if self.weights == "class":
            assert view.scores is not None
            weights = view.scores[:, prefix:]
        medoids, clusters = k_medoids(x[:, prefix:], keep - prefix, self.iterations, weights, self.first)
        kept, nearest = behind_prefix(medoids, prefix), behind_prefix(clusters, prefix)
        sizes = group_sums(nearest, view.masses, keep)
        return SelectionReduction(sizes=sizes, kept=kept, nearest=nearest, columns=x.shape[1])
