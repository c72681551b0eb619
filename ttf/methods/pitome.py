"""PiToMe (arXiv 2405.16148): merge where the energy is high, that is among many tokens that are alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ttf.methods.base import LayerView, Method
from ttf.ops.attention import Wanted
from ttf.ops.bipartite import Matching, best_pairs, cosines, merge_by_size
from ttf.ops.reduction import AssignmentReduction, behind_prefix, gather_tokens

Unprotected = Literal["first", "last", "all", "none"]
UNPROTECTED = ("first", "last", "all", "none")


def energy(between: Tensor, margin: float, alpha: float) -> Tensor:
    """Mean over all tokens, itself among them, of ELU(cosine - margin): high for a token that many others are like.

    Args:
        between: (B, n, n) cosines.
        margin: cosines below it count little, and negative.
        alpha: of the ELU, how negative they may be.

    Returns:
        (B, n) float32.
    """
    return F.elu(between - margin, alpha).mean(dim=2)


def energy_matching(keys: Tensor, r: int, prefix: int, margin: float, alpha: float, protect: bool) -> Matching:
    """The patch tokens in descending order of energy, taken by turns for two sides, r pairs of which merge.

    Args:
        keys: (B, N, F).
        r: how many tokens to merge, at most half of the patch tokens.
        prefix: number of prefix tokens P, which keep to themselves.
        margin, alpha: of ``energy``.
        protect: only the 2r tokens of the highest energy take part, so that every one of the first side joins the most
            similar one of the second; else all do, and the r most similar pairs merge.
    """
    patches = keys[:, prefix:]
    between = cosines(patches, patches)
    order = energy(between, margin, alpha).argsort(dim=1, descending=True, stable=True)
    taking_part = order[:, : 2 * r] if protect else order
    rows = gather_tokens(between, taking_part[:, ::2])
    pairs = best_pairs(rows.gather(2, taking_part[:, None, 1::2].expand(-1, rows.shape[1], -1)), r)
    kept = torch.cat((order[:, taking_part.shape[1] :], taking_part.gather(1, pairs.kept)), dim=1)
    source, target = (taking_part.gather(1, side) + prefix for side in (pairs.source, pairs.target))
    return Matching(behind_prefix(kept, prefix), source, target)


@dataclass(frozen=True)
class PiToMe(Method):
    """W takes size-weighted means of groups as ToMe: exclusive, rows sum to 1. Energy decides who may merge.

    One layer merges at most half of the patch tokens; more than ``keep`` remain where it asks for more than that. Kept
    tokens come in the order of energy, high means redundant.

    Attributes:
        margin: of the energy in block 0; in block l of L it is margin (1 - l / L).
        unprotected: where no token is protected and the r most similar pairs of all merge: in the "first" half of the
            blocks (published for DeiT), the "last" (for MAE), "all" or "none" of them.
        alpha: of the ELU in the energy.
        proportional: later layers add log s to their attention logits. The published blocks never do: sizes do not
            reach their attention, whatever its switch says.

    Raises:
        ValueError: a value out of its range.
    """

    margin: float = 0.75
    unprotected: Unprotected = "first"
    alpha: float = 1.0
    proportional: bool = False

    def __post_init__(self) -> None:
        if self.unprotected not in UNPROTECTED:
            raise ValueError(f"unprotected must be one of {', '.join(UNPROTECTED)}, got {self.unprotected!r}")

    @property
    def wanted(self) -> Wanted:
        return Wanted(keys=True)

    @property
    def scaling(self) -> bool:
        return self.proportional

    def margin_of(self, block: int, depth: int) -> float:
        """The margin in a block of a model of ``depth`` blocks."""
        return self.margin * (1 - block / depth)

    def protects(self, block: int, depth: int) -> bool:
        """Whether tokens of low energy are protected in a block."""
        early = block < (depth + 1) // 2
        return {"first": not early, "last": early, "all": False, "none": True}[self.unprotected]

    def reduce(self, view: LayerView, keep: int) -> AssignmentReduction:
        """See ``Method.reduce``."""
        assert view.keys is not None
        tokens, place = view.x.shape[1], (view.block, view.depth)
        r = min(tokens - keep, (tokens - view.prefix) // 2)
        rule = (self.margin_of(*place), self.alpha, self.protects(*place))
        matching = energy_matching(view.keys, r, view.prefix, *rule)
        return merge_by_size(matching.places(tokens), matching.kept, view.sizes)
