"""ToMe for dense tasks (tomesd, Expedit's port to Segmenter): merge before either half of a block, unmerge after it."""

from __future__ import annotations

from dataclasses import dataclass

from ttf.methods.base import LayerView, Method
from ttf.ops.bipartite import bipartite_matching, merge_by_size
from ttf.ops.reduction import AssignmentReduction


@dataclass(frozen=True)
class ToMeDense(Method):
    """W takes plain means of groups, exclusive, rows sum to 1; the way back copies a group's result to all its tokens.

    The matching is ToMe's, of the normed tokens that go into the branch. Tokens are dense again after the branch, so
    nothing accumulates: every block starts from N tokens, no attention sees sizes, and ``ttf.trace`` shows no layer.
    One branch merges at most half of the patch tokens.
    """

    @property
    def per_branch(self) -> bool:
        return True

    def reduce(self, view: LayerView, keep: int) -> AssignmentReduction:
        """See ``Method.reduce``."""
        tokens = view.x.shape[1]
        matching = bipartite_matching(view.x, tokens - keep, view.prefix)
        return merge_by_size(matching.places(tokens), matching.kept, None)
