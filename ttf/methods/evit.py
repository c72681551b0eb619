"""EViT (arXiv 2202.07800): keep the patch tokens with the highest class attention, fuse the others into one."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ttf.methods.base import LayerView, Method
from ttf.ops.attention import Wanted
from ttf.ops.reduction import SelectionReduction, behind_prefix
from ttf.ops.transform import leading


@dataclass(frozen=True)
class EViT(Method):
    """W selects the attentive tokens, in descending order of class attention a; one more row holds a_j on the others.

    The fused token's weights are not normalised: they sum to less than 1. No sizes, later attention sees none.

    Attributes:
        fuse: add the token for all that is dropped; there are ``keep`` + 1 tokens then.
    """

    fuse: bool = True

    @property
    def wanted(self) -> Wanted:
        return Wanted("class")

    @property
    def names_tokens(self) -> bool:
        return not self.fuse

    def reduce(self, view: LayerView, keep: int) -> SelectionReduction:
        """See ``Method.reduce``."""
        assert view.scores is not None
        attention, prefix = view.scores[:, view.prefix :], view.prefix
        order = leading(attention, keep - prefix)
        fused = None
        if self.fuse:
            dropped = attention.scatter(1, order, 0.0)
            fused = torch.cat((torch.zeros_like(view.scores[:, :prefix]), dropped), dim=1)
        kept = behind_prefix(order, prefix)
        sizes = attention.new_ones(attention.shape[0], keep + int(self.fuse))
        return SelectionReduction(sizes=sizes, kept=kept, columns=view.x.shape[1], fused=fused)
