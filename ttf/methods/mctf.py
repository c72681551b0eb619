"""MCTF (arXiv 2403.10030): fuse tokens that are alike, little attended to and small, in both directions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ttf.methods.base import LayerView, Method
from ttf.ops.attention import Wanted
from ttf.ops.bipartite import best_pairs, cosines, group_sums, mean_weights, without_prefix
from ttf.ops.reduction import AssignmentReduction

Weights = Literal["attention", "sizes", "equal"]
Place = Literal["between", "entrance"]
WEIGHTS = ("attention", "sizes", "equal")
PLACES = ("between", "entrance")


def rarity(values: Tensor) -> Tensor:
    """1 / v, divided by its largest of the image: 1 for the least of values (B, N), less for more."""
    positive = values.detach().float().clamp_min(torch.finfo(torch.float32).tiny)
    return positive.amin(dim=1, keepdim=True) / positive


def pair_scores(x: Tensor, taus: tuple[float, float, float], scores: Tensor | None, sizes: Tensor | None) -> Tensor:
    """How much tokens at even positions (rows) and odd ones should fuse.

    ((cos + 1) / 2)^(1 / tau_0) times (u_i u_j)^(1 / tau_1) times (t_i t_j)^(1 / tau_2), u and t being ``rarity`` of
    attention and size.

    Args:
        x: (B, N, C) tokens.
        taus: of similarity, attention and size; 0 leaves a factor out.
        scores: (B, N) column sums of the attention map; None without that factor.
        sizes: (B, N), or None where all are 1.

    Returns:
        (B, ceil(N / 2), floor(N / 2)) float32.
    """
    similar, information, size = taus
    pairs = (cosines(x[:, ::2], x[:, 1::2]) + 1).clamp_min(0.0) / 2
    pairs = pairs ** (1 / similar) if similar else torch.ones_like(pairs)
    for values, tau in ((scores, information), (sizes, size)):
        if tau and values is not None:
            rare = rarity(values)
            pairs = pairs * (rare[:, ::2].unsqueeze(2) * rare[:, 1::2].unsqueeze(1)) ** (1 / tau)
    return pairs


def fused_groups(scores: Tensor, r: int, prefix: int, both: bool) -> tuple[Tensor, Tensor]:
    """Who fuses with whom.

    One direction is ToMe's. In both, half of r (rounded down) goes that way first; then each odd position looks at the
    even ones that are left, and the rest of r, the best of these, joins them with all that it has taken in. Left tokens
    come in this order: the prefix; even positions, ascending where there is a prefix, else by descending score; odd
    ones, ascending, in both directions by descending score of the second look.

    Args:
        scores: (B, ceil(N / 2), floor(N / 2)) from ``without_prefix``.
        r: how many tokens go, at most half of those that are no prefix.
        prefix: number of prefix tokens P at the front.
        both: both directions.

    Returns:
        The new token of each old one (B, N), and the token that each new one grew from (B, N - r), int64.
    """
    tokens = scores.shape[1] + scores.shape[2]
    if not both or r < 1:
        matching = best_pairs(scores, r, prefix)
        return matching.places(tokens), matching.kept
    best, partner = scores.max(dim=2)
    even = best.argsort(dim=1, descending=True, stable=True)  # the prefix, at -inf, comes last
    even = even[:, : even.shape[1] - (prefix + 1) // 2]
    gone, left = even[:, : r // 2], even[:, r // 2 :]
    again, host = scores.gather(1, left.unsqueeze(2).expand(-1, -1, scores.shape[2])).max(dim=1)
    odd = again.argsort(dim=1, descending=True, stable=True)
    joining, staying = odd[:, : r - r // 2], odd[:, r - r // 2 : odd.shape[1] - prefix // 2]
    host = left.gather(1, host.gather(1, joining))
    left = left.sort(dim=1).values if prefix else left
    front = torch.arange(prefix, device=scores.device).expand(len(scores), prefix)
    kept = torch.cat((front, 2 * left, 2 * staying + 1), dim=1)
    order = torch.arange(kept.shape[1], device=kept.device).expand_as(kept)
    index = kept.new_zeros(len(kept), tokens).scatter(1, kept, order)
    index = index.scatter(1, 2 * joining + 1, index.gather(1, 2 * host))
    return index.scatter(1, 2 * gone, index.gather(1, 2 * partner.gather(1, gone) + 1)), kept


@dataclass(frozen=True)
class MCTF(Method):
    """W takes means of groups weighted by attention times size: exclusive, rows sum to 1.

    Pairs are chosen by ``pair_scores``. One layer fuses at most half of the patch tokens and leaves ``fewest``; more
    than ``keep`` remain where it asks for more than that.

    Attributes:
        tau_similarity, tau_information, tau_size: each factor of a pair's score is taken to the power of 1 / tau; 0
            leaves it out.
        bidirectional: half of the tokens go from even to odd positions, then half the other way.
        weights: of the means: "attention" (column sums of the map, times the size), "sizes" or "equal".
        place: "between" the attention and the feed-forward, as other methods; "entrance", as published: before the
            block, whose attention map, computed of all tokens, is pooled to the new ones (``Reduction.pooled``).
        fewest: how many tokens a layer leaves at least, prefix tokens counted.
        scaling: later layers add log s to their attention logits.

    Raises:
        ValueError: a value out of its range.
    """

    tau_similarity: float = 1.0
    tau_information: float = 20.0
    tau_size: float = 40.0
    bidirectional: bool = True
    weights: Weights = "attention"
    place: Place = "between"
    fewest: int = 10
    scaling: bool = True

    def __post_init__(self) -> None:
        if not all(0 <= tau < float("inf") for tau in self._taus):
            raise ValueError(f"every tau must be 0 (leave the factor out) or positive and finite, got {self._taus}")
        if self.weights not in WEIGHTS:
            raise ValueError(f"weights must be one of {', '.join(WEIGHTS)}, got {self.weights!r}")
        if self.fewest < 1:
            raise ValueError(f"fewest is a number of tokens and must be at least 1, got {self.fewest}")
        if self.place not in PLACES:
            raise ValueError(f"place must be one of {', '.join(PLACES)}, got {self.place!r}")

    @property
    def _taus(self) -> tuple[float, float, float]:
        return self.tau_similarity, self.tau_information, self.tau_size

    @property
    def wanted(self) -> Wanted:
        return Wanted("all" if self.tau_information or self.weights == "attention" else None)

    @property
    def at_entrance(self) -> bool:
        return self.place == "entrance"

    def reduce(self, view: LayerView, keep: int) -> AssignmentReduction:
        """See ``Method.reduce``."""
        tokens, prefix, sizes = view.x.shape[1], view.prefix, view.masses
        r = max(0, min(tokens - keep, (tokens - prefix) // 2, tokens - self.fewest))
        scores = without_prefix(pair_scores(view.x, self._taus, view.scores, view.sizes), prefix)
        index, kept = fused_groups(scores, r, prefix, self.bidirectional)
        masses = self._masses(view)
        weight = mean_weights(index, masses, group_sums(index, masses, kept.shape[1]))
        return AssignmentReduction(sizes=group_sums(index, sizes, kept.shape[1]), kept=kept, index=index, weight=weight)

    def _masses(self, view: LayerView) -> Tensor:
        """(B, N) float32: what each token weighs in the mean of its group."""
        if self.weights == "attention":
            assert view.scores is not None
            return view.scores.float() * view.masses
        return view.masses if self.weights == "sizes" else torch.ones_like(view.masses)
