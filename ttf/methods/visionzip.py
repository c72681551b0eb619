"""VisionZip (arXiv 2412.04467): keep the patches of the highest class attention, merge the others into a few."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ttf.methods.base import LayerView, Method
from ttf.ops.attention import Wanted
from ttf.ops.bipartite import cosines, group_sums
from ttf.ops.reduction import AssignmentReduction, behind_prefix, gather_tokens


def contextual_groups(keys: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Every max(1, m // count)-th of m tokens is a target, the first ``count`` of these; all others join the nearest.

    Args:
        keys: (B, m, F), whose cosines say how near tokens are.
        count: number of targets, at least 1.

    Returns:
        The targets (count,), positions among the m, and the target of every token, (B, m) in [0, count), int64.
    """
    targets = torch.arange(count, device=keys.device) * max(1, keys.shape[1] // count)
    nearest = cosines(keys, keys[:, targets]).argmax(dim=2)
    own = torch.arange(count, device=keys.device).expand(len(keys), count)
    return targets, nearest.scatter(1, targets.expand_as(own), own)


@dataclass(frozen=True)
class VisionZip(Method):
    """W keeps the dominant patches and merges all others into contextual tokens: exclusive.

    Dominant patches, those of the highest class attention, come first, in raster order; rows of one 1 each. A
    contextual token is its target plus the plain mean of those that joined it: its row sums to 2, to 1 where none did.
    Sizes are all 1.

    Attributes:
        contextual: how many of the ``keep`` - P tokens are contextual ones, at most half of them; 0 prunes all that is
            not dominant.

    Raises:
        ValueError: a negative number.
    """

    contextual: int = 10

    def __post_init__(self) -> None:
        if self.contextual < 0:
            raise ValueError(f"contextual is a number of tokens and must be at least 0, got {self.contextual}")

    @property
    def wanted(self) -> Wanted:
        return Wanted("class", keys=True)

    def reduce(self, view: LayerView, keep: int) -> AssignmentReduction:
        """See ``Method.reduce``."""
        assert view.scores is not None and view.keys is not None
        prefix, patches = view.prefix, view.x.shape[1] - view.prefix
        count = min(self.contextual, (keep - prefix) // 2)
        dominant = keep - prefix - count
        order = view.scores[:, prefix:].argsort(dim=1, descending=True, stable=True)
        first, others = (part.sort(dim=1).values for part in (order[:, :dominant], order[:, dominant:]))
        ranks = torch.arange(dominant, device=order.device).expand_as(first)
        places = order.new_full((len(order), patches), -1).scatter(1, first, ranks)
        weight, kept = torch.ones_like(order, dtype=torch.float32), first
        if count:
            targets, groups = contextual_groups(gather_tokens(view.keys[:, prefix:], others), count)
            guests = group_sums(groups, torch.ones_like(groups, dtype=torch.float32), count) - 1
            share = (1 / guests.clamp_min(1)).gather(1, groups)
            share = share.index_fill(1, targets, 1.0)
            places, weight = places.scatter(1, others, groups + dominant), weight.scatter(1, others, share)
            kept = torch.cat((first, others[:, targets]), dim=1)
        index = behind_prefix(places, prefix)
        index[:, prefix:] = index[:, prefix:].masked_fill(places < 0, -1)
        return AssignmentReduction(
            sizes=weight.new_ones(len(order), keep),
            kept=behind_prefix(kept, prefix),
            index=index,
            weight=torch.cat((weight.new_ones(len(order), prefix), weight), dim=1),
        )
