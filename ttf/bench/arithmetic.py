"""What a compressed model computes for an image: multiply-accumulates, those of its tokens alone, norms."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

import ttf
from ttf import api
from ttf.measure import norm_gops
from ttf.schedule import Counts, Schedule


@dataclass
class _Seen:
    """A schedule that remembers how many patch tokens each block met: a method may add one, or round to a grid.

    Attributes:
        schedule: that decides.
        before, after: patch tokens in front of a block, and how many the schedule left.
    """

    schedule: Schedule
    before: dict[int, int] = field(default_factory=dict)
    after: dict[int, int] = field(default_factory=dict)

    def check(self, depth: int) -> None:
        self.schedule.check(depth)

    def kept(self, block: int, n: int) -> int:
        self.before[block], self.after[block] = n, self.schedule.kept(block, n)
        return self.after[block]

    def counts(self) -> Counts:
        """The numbers of tokens that there were, as a schedule of their own."""
        left = {block: self.before.get(block + 1, self.after[block]) for block in self.before}
        return Counts(tuple((block, count) for block, count in left.items() if count < self.before[block]))


def again(model: nn.Module, method: Any, schedule: Schedule) -> nn.Module:
    """A compressed model once more, with another method or schedule."""
    plan = api.plan(model)
    assert plan is not None
    place = getattr(plan.host, "recover_at", None)
    back = {"recover": plan.recovery or False} | ({"recover_at": place} if place else {})
    back |= getattr(plan.host, "options", {})
    return ttf.apply(api.twin(model), method, schedule=schedule, **back)


def arithmetic(model: nn.Module, images: Tensor) -> dict[str, float | str]:
    """GMACs an image: ``gmacs`` all, ``gmacs_norms`` what fvcore counts for norms, ``gmacs_tokens`` those that the
    numbers of tokens alone account for, without the method's own arithmetic.

    The last is counted with tokens dropped at random. It is "" where tokens come back within their block, so that no
    selection of tokens does the same work.

    Args:
        model: in evaluation mode, compressed or not.
        images: (B, 3, H, W); all of them are run where the number of tokens depends on the image, else the first.
    """
    plan = api.plan(model)
    sample = images if plan is not None and plan.method.adaptive else images[:1]

    def counted(counting: nn.Module) -> float:
        return ttf.measure.gmacs(counting, sample.shape, sample) / len(sample)

    norms = norm_gops(model, sample) / len(sample)
    if plan is None:
        whole = counted(model)
        return {"gmacs": whole, "gmacs_tokens": whole, "gmacs_norms": norms}
    seen = _Seen(plan.schedule)
    whole = counted(again(model, plan.method, seen))
    local = plan.method.around or plan.method.per_branch
    tokens = "" if local else counted(again(model, "random_pruning", seen.counts()))
    return {"gmacs": whole, "gmacs_tokens": tokens, "gmacs_norms": norms}
