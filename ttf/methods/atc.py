"""ATC (arXiv 2409.11923): agglomerative clustering of the keys, a mean for each cluster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ttf.methods.base import LayerView, Method
from ttf.ops.attention import Wanted
from ttf.ops.bipartite import cosines, group_sums, mean_weights
from ttf.ops.clustering import LINKAGES, agglomerate
from ttf.ops.reduction import AssignmentReduction, behind_prefix

Linkage = Literal["average", "complete", "single"]


@dataclass(frozen=True)
class ATC(Method):
    """W takes size-weighted means of clusters: exclusive, rows sum to 1.

    The two nearest clusters become one until ``keep`` - P are left; distances are 1 - cosine of the mean keys, those of
    clusters are the linkage's. Sizes do not weigh there. Clusters come in the order of their first patches.

    Attributes:
        linkage: distance of two clusters from those of their members: "average", "complete" (largest) or "single"
            (smallest).
        scaling: later layers add log s to their attention logits.

    Raises:
        ValueError: an unknown linkage.
    """

    linkage: Linkage = "average"
    scaling: bool = True

    def __post_init__(self) -> None:
        if self.linkage not in LINKAGES:
            raise ValueError(f"linkage must be one of {', '.join(LINKAGES)}, got {self.linkage!r}")

    @property
    def wanted(self) -> Wanted:
        return Wanted(keys=True)

    @property
    def names_tokens(self) -> bool:
        return False

    def reduce(self, view: LayerView, keep: int) -> AssignmentReduction:
        """See ``Method.reduce``."""
        assert view.keys is not None
        patches = view.keys[:, view.prefix :]
        labels = agglomerate(1 - cosines(patches, patches), keep - view.prefix, self.linkage)
        index = behind_prefix(labels, view.prefix)
        sizes = group_sums(index, view.masses, keep)
        return AssignmentReduction(sizes=sizes, index=index, weight=mean_weights(index, view.masses, sizes))
