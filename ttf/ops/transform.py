"""The Token Transforming operator (Eq. 2-8) as pure functions.

Shapes: B batch, n old tokens that take part, m new tokens, F features. Similarities are (B, n, m), in memory one row
per new token like W: of the product over all tokens the rows of the informative ones are gathered whole, and Y = W X
reads W along its rows. Imports torch alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ttf.ops.numerics import as_numbers, full_precision, transforming
from ttf.ops.reduction import behind_prefix, gather_tokens

Gate = Literal["zero", "mask"]
GATES: tuple[str, ...] = ("zero", "mask")


def check_temperature(kappa: float, tau: float, gate: str) -> None:
    """Raise ``ValueError`` unless kappa is in [-1, 1], tau is positive and finite, and the gate is known."""
    if not -1.0 <= kappa <= 1.0:
        raise ValueError(f"kappa is a cosine threshold and must be in [-1, 1], got {kappa}")
    if not 0.0 < tau < math.inf:
        raise ValueError(f"tau is an inverse temperature and must be positive and finite, got {tau}")
    if gate not in GATES:
        raise ValueError(f"gate must be one of {', '.join(GATES)}, got {gate!r}")


def unit_features(*parts: Tensor) -> Tensor:
    """Unit vectors whose dot product is the mean of the cosines of the parts (Eq. 4 with one part).

    Args:
        *parts: (B, n, F_k) each: tokens, mean keys, or both.

    Returns:
        (B, n, sum of F_k) float32.
    """
    units = [F.normalize(part.float(), dim=-1) for part in parts]
    return units[0] if len(units) == 1 else torch.cat(units, dim=-1) / math.sqrt(len(units))


def similarity(units: Tensor, others: Tensor) -> Tensor:
    """Cosines of two sets of unit vectors, (B, n, F) and (B, m, F): (B, n, m) float32, rounding clipped to [-1, 1]."""
    with full_precision(units):
        cosines = units @ others.transpose(1, 2)
        return cosines.clamp(-1.0, 1.0) if transforming() else cosines.clamp_(-1.0, 1.0)


def mean_cosines(parts: tuple[Tensor, ...], others: tuple[Tensor, ...] | None = None) -> Tensor:
    """Means of the cosines of parts (B, n, F_k) with others (B, m, F_k), with themselves without: (B, n, m) float32."""
    units = unit_features(*parts)
    return similarity(units, units if others is None else unit_features(*others))


def distances(features: Tensor, others: Tensor) -> Tensor:
    """Euclidean distances of two sets of features, (B, n, F) and (B, m, F): (B, n, m) float32."""
    with full_precision(features):
        features, others = features.float(), others.float()
        squares = features.square().sum(-1).unsqueeze(2) + others.square().sum(-1).unsqueeze(1)
        return (squares - 2 * features @ others.transpose(1, 2)).clamp_min(0.0).sqrt()


def select(scores: Tensor, m: int) -> Tensor:
    """Indices of the m highest scores in raster order: (B, n) to (B, m) int64."""
    return scores.topk(m, dim=1, sorted=False).indices.sort(dim=1).values


def leading(scores: Tensor, count: int, stable: bool = False) -> Tensor:
    """Indices of the highest scores in descending order: (B, n) to (B, count) int64.

    On a GPU without sorting the others; of equal scores any may come first there, elsewhere the first one if stable.
    """
    if scores.is_cuda and count < scores.shape[1]:
        return scores.topk(count, dim=1).indices
    return scores.argsort(dim=1, descending=True, stable=stable)[:, :count]


def novelty(scores: Tensor, cosines: Tensor, tokens: slice = slice(None)) -> Tensor:
    """Informativeness times what no more informative token already says.

    score_j = h_j * (1 - max over {i: h_i > h_j} of cos(f_i, f_j)); beyond the paper.

    Args:
        scores: (B, n) informativeness h.
        cosines: (B, k, n) between the tokens j and all tokens i.
        tokens: which k tokens j these are; all n unless told.

    Returns:
        (B, k) float32.
    """
    rivals, own = scores.detach().unsqueeze(1), scores.detach()[:, tokens].unsqueeze(2)
    not_above = as_numbers(torch.le, rivals, own, cosines)  # 1 where token i is not above token j
    nearest_above = torch.sub(cosines, not_above, alpha=2.0).amax(dim=2).clamp_min(-1.0)  # -1: none is above
    return scores[:, tokens] * (1.0 - nearest_above)


def informative(
    parts: tuple[Tensor, ...],
    scores: Tensor,
    m: int,
    prefix: int,
    redundancy: bool,
    similar: Callable[..., Tensor] = mean_cosines,
) -> tuple[Tensor, Tensor]:
    """The informative tokens, all prefix tokens among them, and how similar all tokens are to them.

    Args:
        parts: (B, n, F_k) features whose similarities count.
        scores: (B, n) informativeness.
        m: how many informative tokens.
        prefix: number of prefix tokens in front.
        redundancy: take the patch tokens of the highest ``novelty``; else those of the highest scores.
        similar: similarities of parts with others, or with themselves, as ``mean_cosines``.

    Returns:
        Indices (B, m) int64, similarities (B, n, m).
    """
    if redundancy:
        full = similar(parts)
        ranks = novelty(scores[:, prefix:], full[:, prefix:, prefix:])
        index = behind_prefix(select(ranks, m - prefix), prefix)
        return index, gather_tokens(full, index).transpose(1, 2)
    index = behind_prefix(select(scores[:, prefix:], m - prefix), prefix)
    return index, similar(tuple(gather_tokens(part, index) for part in parts), parts).transpose(1, 2)


def gated_softmax(cosines: Tensor, dim: int, kappa: float, tau: float, gate: Gate = "zero") -> Tensor:
    """``assign`` for cosines (B, n, m) or (B, m, n), the new tokens along ``dim``."""
    if gate == "zero":
        passed = as_numbers(torch.ge, cosines.detach(), kappa, cosines)
        return torch.softmax((cosines * passed).mul_(tau), dim=dim)
    below = cosines < kappa
    logits = (cosines * tau).masked_fill(below & ~below.all(dim, keepdim=True), -math.inf)
    return torch.softmax(logits, dim=dim).masked_fill(below, 0.0)


def assign(cosines: Tensor, kappa: float, tau: float, gate: Gate = "zero") -> Tensor:
    """Gated similarity and assignment normalisation (Eq. 3 and 5): shares of each old token over the new ones.

    Args:
        cosines: (B, n, m).
        kappa: threshold; a cosine below it becomes 0 (gate "zero", the paper: it still counts exp(0)) or takes no
            part (gate "mask": an old token without any cosine >= kappa is dropped).
        tau: inverse temperature; 150 overflows exp, which torch's max-subtracted softmax in float32 avoids.
        gate: "zero" or "mask".

    Returns:
        (B, n, m) float32; every row sums to 1, or to 0 for a dropped token.
    """
    # along the rows that the new tokens have in memory
    return gated_softmax(cosines.transpose(1, 2), 1, kappa, tau, gate).transpose(1, 2)


def mark_own(similarities: Tensor, index: Tensor, own: float = 1.0) -> Tensor:
    """Set the similarity of every informative token with itself to exactly ``own``, so that no gate empties a row of W.

    Args:
        similarities: (B, n, m), changed in place (but for torch.func).
        index: (B, m), old token of each new one.
        own: similarity of a token with itself, 1 for cosines.
    """
    run = similarities.scatter if transforming() else similarities.scatter_
    return run(1, index.unsqueeze(1), own)


def transformed_sizes(shares: Tensor, mass: Tensor | None) -> Tensor:
    """Sizes of the new tokens (Eq. 8): s_i = sum_j m_ij, with m_ij weighted by the old sizes where these accumulate.

    Args:
        shares: (B, n, m) from ``assign``.
        mass: (B, n) sizes of the old tokens, or None.

    Returns:
        (B, m) float32.
    """
    if mass is None:
        return shares.sum(dim=1)
    with full_precision(shares):
        return (shares.transpose(1, 2) @ mass.float().unsqueeze(2)).squeeze(2)
