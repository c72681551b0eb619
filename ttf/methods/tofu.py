"""ToFu (arXiv 2312.01026): prune in early blocks, merge in later ones, to the length of the longest of the group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ttf.methods.base import LayerView, Method
from ttf.ops.attention import Wanted
from ttf.ops.bipartite import Matching, bipartite_matching, group_sums, mean_weights
from ttf.ops.reduction import AssignmentReduction

Mode = Literal["mixed", "prune", "mean", "longest"]
MODES = ("mixed", "prune", "mean", "longest")
SMALLEST_NORM = 1e-12  # of a token that is nothing but zeros


def group_maxima(index: Tensor, values: Tensor, groups: int) -> Tensor:
    """The largest of values (B, N) > 0 in each of M groups, (B, M); index -1 counts nowhere."""
    live = values.masked_fill(index < 0, 0.0)
    return live.new_zeros(len(index), groups).scatter_reduce(1, index.clamp_min(0), live, "amax")


@dataclass(frozen=True)
class ToFu(Method):
    """W selects the tokens that ToMe's matching leaves, or takes means of its groups, perhaps lengthened: exclusive.

    Rows sum to 1 but in mode "longest": there the plain mean of a group is multiplied by the largest norm of its tokens
    over that of the one that the others joined, so rows sum to 1 or more. The authors published no code; this is the
    port in PiToMe's repository (arXiv 2405.16148). The paper divides by the norm of the mean instead.

    One layer removes at most half of the patch tokens. Sizes are all 1, no attention sees any.

    Attributes:
        mode: "mixed" prunes in blocks 0 to L // 2 of L and is "longest" after these; "prune", "mean" and "longest" are
            one rule for all blocks.

    Raises:
        ValueError: a value out of its range.
    """

    mode: Mode = "mixed"

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {self.mode!r}")

    @property
    def wanted(self) -> Wanted:
        return Wanted(keys=True)

    def mode_of(self, block: int, depth: int) -> Mode:
        """What happens in a block of a model of ``depth`` blocks."""
        if self.mode == "mixed":
            return "prune" if block <= depth // 2 else "longest"
        return self.mode

    def reduce(self, view: LayerView, keep: int) -> AssignmentReduction:
        """See ``Method.reduce``."""
        assert view.keys is not None
        tokens, mode = view.x.shape[1], self.mode_of(view.block, view.depth)
        found = bipartite_matching(view.keys, tokens - keep, view.prefix)
        if mode == "prune":
            found = Matching(found.kept, found.source[:, :0], found.target[:, :0])
        index, ones = found.places(tokens), view.x.new_ones(view.x.shape[:2], dtype=torch.float32)
        new = found.kept.shape[1]
        weight = mean_weights(index, ones, group_sums(index, ones, new))
        if mode == "longest":
            norms = view.x.detach().float().norm(dim=-1)
            longer = group_maxima(index, norms, new) / norms.gather(1, found.kept).clamp_min(SMALLEST_NORM)
            weight = weight * longer.gather(1, index.clamp_min(0))
        return AssignmentReduction(sizes=ones[:, :new], kept=found.kept, index=index, weight=weight)
