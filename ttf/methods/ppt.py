"""PPT (arXiv 2310.01812): prune where the scores of an image differ much, else pool tokens that are alike."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ttf.methods.base import LayerView, Method
from ttf.ops.attention import Wanted
from ttf.ops.bipartite import Matching, bipartite_matching, merge_by_size
from ttf.ops.reduction import AssignmentReduction, behind_prefix
from ttf.ops.scores import value_weighted_scores
from ttf.ops.transform import leading

Mode = Literal["mixed", "pool", "prune"]
MODES = ("mixed", "pool", "prune")


@dataclass(frozen=True)
class PPT(Method):
    """Each image by itself: W selects the tokens with the highest scores, or takes ToMe's size-weighted means.

    Both are exclusive with rows that sum to 1; pruned tokens go nowhere. The score is class attention times the norm
    of the value. Pooled images have ToMe's order, pruned ones the descending order of the score. Either way one layer
    removes at most half of the patch tokens; more than ``keep`` remain where it asks for more than that.

    Attributes:
        threshold: an image is pooled where the variance of its scores is below this.
        mode: "mixed" decides by the threshold; "pool" and "prune" do one of the two for every image.

    Raises:
        ValueError: a value out of its range.
    """

    threshold: float = 7e-5
    mode: Mode = "mixed"

    def __post_init__(self) -> None:
        if math.isnan(self.threshold) or self.threshold < 0:
            raise ValueError(f"threshold is a variance and must be >= 0, got {self.threshold}")
        if self.mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {self.mode!r}")

    @property
    def wanted(self) -> Wanted:
        scored = self.mode != "pool"
        return Wanted("class" if scored else None, keys=self.mode != "prune", value_norms=scored)

    @property
    def scaling(self) -> bool:
        return True

    def reduce(self, view: LayerView, keep: int) -> AssignmentReduction:
        """See ``Method.reduce``."""
        tokens, prefix = view.x.shape[1], view.prefix
        r = min(tokens - keep, (tokens - prefix) // 2)
        if self.mode == "pool":
            return _reduction(_pooled(view, r), view)
        assert view.scores is not None and view.value_norms is not None
        scores = value_weighted_scores(view.scores, view.value_norms, prefix)
        pruned = _pruned(scores, r, prefix)
        if self.mode == "prune":
            return _reduction(pruned, view)
        pool = (scores.var(dim=1) < self.threshold).unsqueeze(1)
        pooled = _pooled(view, r)
        index = torch.where(pool, pooled.places(tokens), pruned.places(tokens))
        return merge_by_size(index, torch.where(pool, pooled.kept, pruned.kept), view.sizes)


def _pooled(view: LayerView, r: int) -> Matching:
    assert view.keys is not None
    return bipartite_matching(view.keys, r, view.prefix)


def _pruned(scores: Tensor, r: int, prefix: int) -> Matching:
    """All but the r lowest of the patch scores (B, N - P), the highest first."""
    order = leading(scores, scores.shape[1] - r, stable=True)
    return Matching(behind_prefix(order, prefix), order[:, :0], order[:, :0])


def _reduction(matching: Matching, view: LayerView) -> AssignmentReduction:
    return merge_by_size(matching.places(view.x.shape[1]), matching.kept, view.sizes)
