"""Top-k pruning: keep the patch tokens with the highest attention scores, drop the others."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ttf.methods.base import LayerView, Method
from ttf.ops.attention import ScoreRows, Wanted, check_score_rows
from ttf.ops.reduction import SelectionReduction, behind_prefix
from ttf.ops.transform import select


def selection(view: LayerView, patches: Tensor) -> SelectionReduction:
    """Prune to the prefix tokens and the given patch tokens (B, m), counted from behind the prefix.

    W is one-hot rows. Sizes are carried over unchanged.
    """
    kept = behind_prefix(patches, view.prefix)
    return SelectionReduction(sizes=view.masses.gather(1, kept), kept=kept, columns=view.x.shape[1])


@dataclass(frozen=True)
class TopK(Method):
    """W selects the tokens with the highest column sums of the attention map, in raster order.

    Attributes:
        score_rows: rows of the map that are summed: "all", "patch" or "class" (class attention).
    """

    score_rows: ScoreRows = "all"

    def __post_init__(self) -> None:
        check_score_rows(self.score_rows)

    @property
    def wanted(self) -> Wanted:
        return Wanted(self.score_rows)

    def reduce(self, view: LayerView, keep: int) -> SelectionReduction:
        """See ``Method.reduce``."""
        assert view.scores is not None
        return selection(view, select(view.scores[:, view.prefix :], keep - view.prefix))
