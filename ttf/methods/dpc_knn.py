"""DPC-KNN (density peaks of nearest neighbours, arXiv 2204.08680): centres are dense tokens far from denser ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ttf.methods.base import LayerView, Method
from ttf.ops.attention import Wanted
from ttf.ops.bipartite import group_sums
from ttf.ops.clustering import distances, nearest_centre
from ttf.ops.reduction import AssignmentReduction, behind_prefix

Weights = Literal["equal", "sizes", "class"]
WEIGHTS = ("equal", "sizes", "class")
SMALLEST_WEIGHT = 1e-6  # the definition adds it to the weight of every cluster


def density_peaks(between: Tensor, neighbours: int) -> Tensor:
    """Density of a token times its distance to the next denser token, as a logarithm: the higher, the better a centre.

    density_j = exp(-mean of the ``neighbours`` smallest squared distances, its own 0 among them); the densest token
    counts the largest distance of its image. The logarithm orders tokens all the same where exp would give 0.

    Args:
        between: (B, n, n) distances.
        neighbours: k; all n tokens where there are fewer than k.

    Returns:
        (B, n) float32.
    """
    nearest = between.topk(min(neighbours, between.shape[2]), dim=2, largest=False, sorted=False).values
    density = -nearest.square().mean(dim=2)
    denser = density.unsqueeze(1) > density.unsqueeze(2)
    apart = torch.where(denser, between, between.amax(dim=(1, 2), keepdim=True)).amin(dim=2)
    return density + apart.log()


def cluster_tokens(x: Tensor, m: int, neighbours: int) -> tuple[Tensor, Tensor]:
    """DPC-KNN clustering of tokens (B, n, C), distances divided by sqrt(C).

    Returns:
        centres (B, m) int64, best first, and the cluster of every token (B, n) int64.
    """
    between = distances(x) / x.shape[2] ** 0.5
    centres = density_peaks(between, neighbours).argsort(dim=1, descending=True)[:, :m]
    return centres, nearest_centre(between, centres)


@dataclass(frozen=True)
class DpcKnn(Method):
    """W averages the patch tokens of every cluster: W_ij = w_j / (sum of w in cluster i + 1e-6).

    Exclusive: every patch token goes into one new token. Rows sum to 1 less the 1e-6's share: with sizes or equal
    weights that is nothing, with class attention it shrinks clusters whose attention is that small. ``keep`` tokens,
    the clusters in the order of their centres (``kept``), best first. Sizes add up.

    Attributes:
        neighbours: k of the density, >= 1.
        weights: of the old tokens, w: "equal" (1), "sizes" or "class" (class attention).
        scaling: later layers add log s to their attention logits (Eq. 7).

    Raises:
        ValueError: a value out of its range.
    """

    neighbours: int = 5
    weights: Weights = "sizes"
    scaling: bool = True

    def __post_init__(self) -> None:
        if self.neighbours < 1:
            raise ValueError(f"neighbours is the k of the density and must be at least 1, got {self.neighbours}")
        if self.weights not in WEIGHTS:
            raise ValueError(f"weights must be one of {', '.join(WEIGHTS)}, got {self.weights!r}")

    @property
    def wanted(self) -> Wanted:
        return Wanted("class" if self.weights == "class" else None)

    def _mass(self, view: LayerView, sizes: Tensor) -> Tensor:
        """(B, N) float32: w."""
        if self.weights == "class":
            assert view.scores is not None
            return view.scores
        return sizes if self.weights == "sizes" else torch.ones_like(sizes)

    def reduce(self, view: LayerView, keep: int) -> AssignmentReduction:
        """See ``Method.reduce``."""
        x, prefix, sizes = view.x, view.prefix, view.masses
        centres, clusters = cluster_tokens(x[:, prefix:], keep - prefix, self.neighbours)
        index, mass = behind_prefix(clusters, prefix), self._mass(view, sizes)
        weight = mass / (group_sums(index, mass, keep).gather(1, index) + SMALLEST_WEIGHT)
        weight = torch.cat((torch.ones_like(weight[:, :prefix]), weight[:, prefix:]), dim=1)
        merged, kept = group_sums(index, sizes, keep), behind_prefix(centres, prefix)
        return AssignmentReduction(sizes=merged, kept=kept, index=index, weight=weight)
