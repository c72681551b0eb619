"""DiffRate (arXiv 2305.17997): in every block prune by class attention, then merge the tail into the head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from ttf.methods.base import LayerView, Method
from ttf.ops.attention import SMALLEST_SIZE, Wanted
from ttf.ops.bipartite import Matching, cosines, group_sums, mean_weights
from ttf.ops.reduction import AssignmentReduction, behind_prefix, gather_tokens
from ttf.ops.transform import leading
from ttf.schedule import Counts

PUBLISHED = Path(__file__).with_name("diffrate.yaml")


@dataclass(frozen=True)
class DiffRate(Method):
    """W takes plain means of groups (sizes do not weigh): exclusive, rows sum to 1, pruned tokens go nowhere.

    Tokens come in descending order of class attention. Those after the first ``prune_kept`` are pruned; of the others,
    those after the first ``keep`` join the most similar patch token before (cosine of x). The size of a new token is
    that of its own plus cosine times size of those that joined it: no integer, and it may decrease
    (the official one may even be negative; here it stays positive).

    Attributes:
        prune_kept: for every block, how many tokens the pruning leaves, prefix tokens counted; never more than there
            are. Where it is less than ``keep``, so many remain. None, or a block after the last: no pruning.

    Raises:
        ValueError: a count below 2, the class token and one more.
    """

    prune_kept: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.prune_kept is None:
            return
        object.__setattr__(self, "prune_kept", tuple(self.prune_kept))  # configs hold lists
        if any(count < 2 for count in self.prune_kept):
            raise ValueError(f"every count of prune_kept must be at least 2, got {min(self.prune_kept)}")

    @property
    def wanted(self) -> Wanted:
        return Wanted("class")

    @property
    def scaling(self) -> bool:
        return True

    def _left(self, block: int, tokens: int, prefix: int) -> int:
        """How many of the tokens the pruning of a block leaves, at least one behind the prefix."""
        if self.prune_kept is None or block >= len(self.prune_kept):
            return tokens
        return min(tokens, max(prefix + 1, self.prune_kept[block]))

    def reduce(self, view: LayerView, keep: int) -> AssignmentReduction:
        """See ``Method.reduce``."""
        assert view.scores is not None
        tokens, prefix = view.x.shape[1], view.prefix
        left = self._left(view.block, tokens, prefix)
        order = behind_prefix(leading(view.scores[:, prefix:], left - prefix, stable=True), prefix)
        matching, similarity = _merge_tail(view.x, order, min(keep, left), prefix)
        index, ones = matching.places(tokens), torch.ones_like(view.scores, dtype=torch.float32)
        members = group_sums(index, ones, matching.kept.shape[1])
        return AssignmentReduction(
            sizes=_grown(view.masses, matching, index, similarity),
            kept=matching.kept,
            index=index,
            weight=mean_weights(index, ones, members),
        )


def _merge_tail(x: Tensor, order: Tensor, head: int, prefix: int) -> tuple[Matching, Tensor]:
    """Every token after the first ``head`` joins its most similar one among those, prefix tokens excluded.

    Args:
        x: (B, N, C).
        order: (B, L), tokens by importance, the prefix in front.
        head: how many of them stay.
        prefix: number of prefix tokens P.

    Returns:
        The matching, and the cosine of each merged token with its target, (B, L - head).
    """
    kept, source = order[:, :head], order[:, head:]
    similarity, nearest = cosines(gather_tokens(x, source), gather_tokens(x, kept[:, prefix:])).max(dim=2)
    return Matching(kept, source, kept[:, prefix:].gather(1, nearest)), similarity


def _grown(sizes: Tensor, matching: Matching, index: Tensor, similarity: Tensor) -> Tensor:
    """s_target + sum of s_source cos(source, target): (B, N) to (B, M); positive, for its logarithm is taken."""
    joined = sizes.gather(1, matching.source) * similarity
    grown = sizes.gather(1, matching.kept).scatter_add(1, index.gather(1, matching.source), joined)
    return grown.clamp_min(SMALLEST_SIZE)


def from_counts(prune_kept: Sequence[int], merge_kept: Sequence[int]) -> tuple[DiffRate, Counts]:
    """The method and its schedule from the tokens kept by pruning and by merging in every block.

    Args:
        prune_kept: for every block, the class token counted.
        merge_kept: for every block, the class token counted.

    Raises:
        ValueError: lists of different lengths, or a count below 2.
    """
    if len(prune_kept) != len(merge_kept):
        raise ValueError(f"prune_kept is for {len(prune_kept)} blocks, merge_kept for {len(merge_kept)}")
    # the smaller one, so that a block that prunes but does not merge reduces too
    counts = tuple((block, min(pair) - 1) for block, pair in enumerate(zip(prune_kept, merge_kept, strict=True)))
    return DiffRate(tuple(prune_kept)), Counts(counts)


@cache
def _published() -> dict[str, dict[float, dict[str, list[int]]]]:
    content: Any = OmegaConf.to_container(OmegaConf.load(PUBLISHED))
    return {model: {float(target): kept for target, kept in targets.items()} for model, targets in content.items()}


def published(model: str, target: float) -> tuple[DiffRate, Counts]:
    """The method and the schedule that the authors searched for a model and a budget.

    Args:
        model: as in the published file, for example "ViT-S-DeiT".
        target: budget in GMACs.

    Raises:
        ValueError: there is no such model or budget; the message lists those that there are.
    """
    known = _published()
    if model not in known:
        raise ValueError(f"no kept numbers are published for {model!r}: there are {', '.join(known)}")
    if target not in known[model]:
        targets = ", ".join(str(budget) for budget in known[model])
        raise ValueError(f"no kept numbers are published for {model} at {target} GMACs: there are {targets}")
    kept = known[model][target]
    return from_counts(kept["prune_kept"], kept["merge_kept"])


def published_options(model: str, target: float) -> dict[str, Any]:
    """``published`` as arguments of ``ttf.apply``."""
    method, schedule = published(model, target)
    return {"method": method, "schedule": schedule}
