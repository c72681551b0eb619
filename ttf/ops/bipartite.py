"""Which tokens merge with which: bipartite matchings (ToMe), and W of a matching.

Shapes: B batch, N tokens in, M tokens out, R merged tokens, F features of the metric, P prefix tokens.
Imports torch alone.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ttf.ops.numerics import full_precision, norms, on_tensor_cores, products, recorded, transforming
from ttf.ops.reduction import AssignmentReduction

SMALLEST_NORM = 1e-12  # as in torch's normalize
SMALLEST_MASS = 1e-30  # keeps the mean of a group of padding tokens, all of size 0, at 0


class Matching(NamedTuple):
    """Who stays and who joins whom, as positions among the N tokens. Tokens named nowhere are dropped.

    Attributes:
        kept: (B, M) int64, the tokens that stay, in their new order.
        source: (B, R) int64, the tokens that are merged.
        target: (B, R) int64, the kept token that each of them joins.
    """

    kept: Tensor
    source: Tensor
    target: Tensor

    def places(self, tokens: int) -> Tensor:
        """The new token of each of N old ones, -1 for a dropped one: (B, N) int64."""
        batch, new = self.kept.shape
        order = torch.arange(new, device=self.kept.device).expand(batch, new)
        own = order.new_full((batch, tokens), -1).scatter(1, self.kept, order)
        return own.scatter(1, self.source, own.gather(1, self.target))


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """Cosines of two sets of vectors, (B, n, F) and (B, m, F): (B, n, m) float32, without a gradient."""
    with full_precision(a):
        if on_tensor_cores(a) and not (transforming() or recorded()):
            a, b = a.detach(), b.detach()
            shortest = [norms(part).clamp_min(SMALLEST_NORM) for part in (a, b)]
            return products(a, b) / shortest[0].unsqueeze(2) / shortest[1].unsqueeze(1)
        units, others = (F.normalize(part.detach().float(), dim=-1) for part in (a, b))
        return units @ others.transpose(1, 2)


def between_sides(metric: Tensor, prefix: int) -> Tensor:
    """Cosines of the tokens at even positions (rows) with those at odd positions, (B, ceil(N / 2), floor(N / 2)).

    Those of prefix tokens are -inf, so that they merge with none.
    """
    return without_prefix(cosines(metric[:, ::2], metric[:, 1::2]), prefix)


def without_prefix(scores: Tensor, prefix: int) -> Tensor:
    """Scores between even and odd positions, those of the P prefix tokens at -inf."""
    if prefix == 0:
        return scores
    even = torch.arange(0, 2 * scores.shape[1], 2, device=scores.device)
    odd = torch.arange(1, 2 * scores.shape[2], 2, device=scores.device)
    return scores.masked_fill((even < prefix).unsqueeze(1) | (odd < prefix), -torch.inf)


def bipartite_matching(metric: Tensor, r: int, prefix: int = 0) -> Matching:
    """``best_pairs`` by cosine.

    Args:
        metric: (B, N, F), what is compared by its cosine.
        r: how many tokens to merge, never more than half of those that are no prefix; 0 leaves the order as it is.
        prefix: number of prefix tokens P at the front, which merge with none.
    """
    return best_pairs(between_sides(metric, prefix), r, prefix)


def best_pairs(scores: Tensor, r: int, prefix: int = 0) -> Matching:
    """Bipartite soft matching: the r tokens at even positions that fit one at an odd position best join it.

    Kept tokens come in this order: the prefix; the even positions, ascending where there is a prefix, else from the
    highest to the lowest score; the odd positions, ascending.

    Args:
        scores: (B, ceil(N / 2), floor(N / 2)) from ``without_prefix``, even positions with odd ones.
        r: how many tokens to merge, never more than half of those that are no prefix; 0 leaves the order as it is.
        prefix: number of prefix tokens P at the front.
    """
    batch, tokens = scores.shape[0], scores.shape[1] + scores.shape[2]
    r = min(r, (tokens - prefix) // 2)
    positions = torch.arange(tokens, device=scores.device).expand(batch, tokens)
    if r < 1:
        return Matching(positions, positions[:, :0], positions[:, :0])
    best, partner = scores.max(dim=2)
    order = best.argsort(dim=1, descending=True, stable=True)  # the prefix, at -inf, comes last
    alone = order[:, r : order.shape[1] - (prefix + 1) // 2]
    alone = alone.sort(dim=1).values if prefix else alone
    source = order[:, :r]
    kept = torch.cat((positions[:, :prefix], 2 * alone, positions[:, prefix | 1 :: 2]), dim=1)
    return Matching(kept, 2 * source, 2 * partner.gather(1, source) + 1)


def kth_matching(metric: Tensor, k: int) -> Matching:
    """Every k-th token stays (positions k - 1, 2k - 1, ...), every other one joins its most similar one of them.

    Args:
        metric: (B, N, F), what is compared by its cosine; the last N mod k tokens are dropped.
        k: how many tokens become one, from 2 to N.
    """
    batch, tokens, _ = metric.shape
    if not 2 <= k <= tokens:
        raise ValueError(f"k is how many tokens become one and must be from 2 to {tokens}, got {k}")
    cells = torch.arange(tokens // k * k, device=metric.device).reshape(-1, k)
    kept, source = cells[:, -1], cells[:, :-1].flatten()
    partner = cosines(metric[:, source], metric[:, kept]).argmax(dim=2)
    return Matching(kept.expand(batch, -1), source.expand(batch, -1), kept[partner])


def group_sums(index: Tensor, values: Tensor, groups: int) -> Tensor:
    """Sums of values (B, N) over the tokens of each of M new ones, (B, M); index -1 counts nowhere."""
    live = values.masked_fill(index < 0, 0.0)
    return live.new_zeros(index.shape[0], groups).scatter_add(1, index.clamp_min(0), live)


def mean_weights(index: Tensor, masses: Tensor, sums: Tensor) -> Tensor:
    """Share of each old token in its group: its mass over the group's, (B, N); of no meaning where index is -1."""
    return masses / sums.gather(1, index.clamp_min(0)).clamp_min(SMALLEST_MASS)


def merge_by_size(index: Tensor, kept: Tensor, sizes: Tensor | None) -> AssignmentReduction:
    """W as size-weighted means: W_ij = s_j / sum of s over group i; rows sum to 1, and sizes add up.

    Args:
        index: (B, N) int64, new token of each old one, -1 for a dropped one.
        kept: (B, M) int64, the token that each new one grew from.
        sizes: (B, N) of the old tokens, or None where all are 1.
    """
    masses = torch.ones_like(index, dtype=torch.float32) if sizes is None else sizes.float()
    sums = group_sums(index, masses, kept.shape[1])
    return AssignmentReduction(sizes=sums, kept=kept, index=index, weight=mean_weights(index, masses, sums))
