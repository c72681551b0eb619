"""ATS (arXiv 2111.15667): adaptive token sampling, as many tokens per image as its attention needs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ttf.methods.base import LayerView, Method
from ttf.ops.attention import Wanted
from ttf.ops.numerics import has_values
from ttf.ops.reduction import AssignmentReduction
from ttf.ops.scores import value_weighted_scores


def normalised_cdf(ascending: Tensor, first: Tensor | None = None) -> Tensor:
    """Cumulative sums of ascending scores, moved and scaled to run from 0 to 1.

    Args:
        ascending: (B, n).
        first: (B, 1) int64, the entry that becomes 0, behind the padding; None: the very first.

    Returns:
        (B, n), negative in the padding.
    """
    sums = ascending.cumsum(dim=1)
    low, high = sums[:, :1] if first is None else sums.gather(1, first), sums[:, -1:]
    return (sums - low) / (high - low).clamp_min(torch.finfo(sums.dtype).tiny)


def sampling_levels(cdf: Tensor, count: int) -> Tensor:
    """Evenly spaced levels from the smallest positive value of the function (B, n) to 1: (B, count)."""
    start = cdf.masked_fill(cdf <= 0, 1.0).amin(dim=1, keepdim=True)
    steps = torch.arange(count, device=cdf.device, dtype=cdf.dtype) / max(1, count - 1)
    return start + (1 - start) * steps


def inverse_transform(cdf: Tensor, levels: Tensor) -> Tensor:
    """Which entries of the function are nearest to some level, the first one of equals.

    Args:
        cdf: (B, n), ascending.
        levels: (B, R); where R < n, only the last R entries can be chosen.

    Returns:
        (B, n) bool.
    """
    skipped = max(0, cdf.shape[1] - levels.shape[1])
    nearest = (levels.unsqueeze(2) - cdf[:, None, skipped:]).abs().argmin(dim=-1) + skipped
    return torch.zeros_like(cdf, dtype=torch.bool).scatter(1, nearest, True)


def new_positions(scores: Tensor, count: int, prefix: int, padding: Tensor | None = None) -> Tensor:
    """Where every token goes: prefix tokens first, then the sampled patch tokens by ascending score.

    Args:
        scores: (B, N - P) of the patch tokens.
        count: number of levels.
        prefix: number of prefix tokens P.
        padding: (B, N - P) bool, patch tokens that an earlier sampling left as padding, or None; never sampled.

    Returns:
        (B, N) int64, -1 for tokens that are not sampled.
    """
    first = None
    if padding is not None:  # their scores are 0, and below 0 they also come before real tokens with a score of 0
        scores, first = scores.masked_fill(padding, -1.0), padding.sum(dim=1, keepdim=True)
    ascending, order = scores.sort(dim=1, stable=True)
    cdf = normalised_cdf(ascending.clamp_min(0.0), first)
    chosen = inverse_transform(cdf, sampling_levels(cdf, count))
    ranks = torch.where(chosen, chosen.cumsum(dim=1) - 1 + prefix, -1)
    patches = torch.empty_like(ranks).scatter(1, order, ranks)
    own = torch.arange(prefix, device=scores.device).expand(scores.shape[0], prefix)
    return torch.cat((own, patches), dim=1)


@dataclass(frozen=True)
class ATS(Method):
    """W selects tokens by inverse transform sampling of their significance: one-hot rows, ascending significance.

    Images need different numbers of tokens, ``keep`` is an upper bound. Shorter ones are padded with zero rows, of
    size 0, which later attention does not see. Selecting after the attention equals selecting its rows.

    Attributes:
        reference: number of levels plus prefix tokens, an upper bound on the tokens that replaces ``keep``; None:
            ``keep`` itself. From the second reduction on, a share of the tokens is one of the longest image's: with a
            number here no image depends on the others of its batch.
        trim: pad to the longest image of the batch, which looks at the values, instead of to the upper bound; never
            where there are none: while compiling, exporting or tracing, under torch.func, on the meta device.
    """

    reference: int | None = None
    trim: bool = True

    def __post_init__(self) -> None:
        if self.reference is not None and self.reference < 2:
            raise ValueError(f"reference counts the class token and must be at least 2, got {self.reference}")

    @property
    def wanted(self) -> Wanted:
        return Wanted("class", value_norms=True)

    @property
    def scaling(self) -> bool:
        return True

    @property
    def adaptive(self) -> bool:
        return True

    def _length(self, index: Tensor, most: int) -> int:
        """Number of tokens with the padding."""
        return int(index.amax()) + 1 if self.trim and has_values(index) else most

    def reduce(self, view: LayerView, keep: int) -> AssignmentReduction:
        """See ``Method.reduce``. ``kept`` names token 0 in the padding."""
        assert view.scores is not None and view.value_norms is not None
        prefix, tokens = view.prefix, view.x.shape[1]
        scores = value_weighted_scores(view.scores, view.value_norms, prefix)
        reference = max(prefix + 1, self.reference or keep)
        padding = None if view.sizes is None else view.sizes[:, prefix:] == 0
        index = new_positions(scores, reference - prefix, prefix, padding)
        length = self._length(index, min(reference, tokens))
        target = index.masked_fill(index < 0, length)  # one place more, cut off again
        places = torch.arange(tokens, device=index.device).expand_as(index)
        kept = index.new_zeros(index.shape[0], length + 1).scatter(1, target, places)[:, :length]
        real = torch.arange(length, device=index.device) <= index.amax(dim=1, keepdim=True)
        return AssignmentReduction(sizes=real.float(), kept=kept, index=index, weight=torch.ones_like(index).float())
