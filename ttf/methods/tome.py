"""ToMe (arXiv 2210.09461): merge the tokens whose keys are most alike, by bipartite soft matching."""

from __future__ import annotations

from dataclasses import dataclass

from ttf.methods.base import LayerView, Method
from ttf.ops.attention import Wanted
from ttf.ops.bipartite import bipartite_matching, merge_by_size
from ttf.ops.reduction import AssignmentReduction


@dataclass(frozen=True)
class ToMe(Method):
    """W takes size-weighted means of groups, W_ij = s_j / sum of s over group i: exclusive, rows sum to 1.

    N - ``keep`` tokens at even positions each join the token at an odd position that their mean keys are most like.
    One layer merges at most half of the patch tokens; more than ``keep`` remain where it asks for more than that.

    Attributes:
        scaling: later layers add log s to their attention logits; sizes accumulate with or without it.
    """

    scaling: bool = True

    @property
    def wanted(self) -> Wanted:
        return Wanted(keys=True)

    def reduce(self, view: LayerView, keep: int) -> AssignmentReduction:
        """See ``Method.reduce``."""
        assert view.keys is not None
        tokens = view.x.shape[1]
        matching = bipartite_matching(view.keys, tokens - keep, view.prefix)
        return merge_by_size(matching.places(tokens), matching.kept, view.sizes)
