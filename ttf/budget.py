"""Budgets: the cost of a compressed model as a share of the uncompressed one's, counted from shapes alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cache, partial
from operator import mul
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from ttf.core import entry
from ttf.core.plan import Plan
from ttf.measure.gmacs import UNCOUNTED
from ttf.schedule import Schedule

STEPS = 1000  # keep ratios between 0 and 1
FITS = 3  # counts that costs are fitted to
CLOSE = 0.005  # relative error of a fit that will do
CORRECTIONS = 4
SMALL = 30e6  # parameters


def nearest(count: Callable[[int], float], low: int, high: int, target: float) -> int:
    """The whole number in [low, high] whose count is nearest to the target; the counts rise or fall evenly.

    By false position (the Illinois rule: an end that stays twice counts half), since a count may take a second.
    """
    count = cache(count)
    ends, errors, kept = [low, high], [count(low) - target, count(high) - target], -1
    if errors[0] * errors[1] > 0:
        return min(ends, key=lambda number: abs(count(number) - target))
    while ends[1] - ends[0] > 1:
        share = errors[0] / (errors[0] - errors[1]) if errors[0] != errors[1] else 0.5
        middle = min(max(ends[0] + round(share * (ends[1] - ends[0])), ends[0] + 1), ends[1] - 1)
        error = count(middle) - target
        side = 0 if error * errors[0] > 0 else 1
        ends[side], errors[side] = middle, error
        if kept == 1 - side:
            errors[kept] /= 2
        kept = 1 - side
    return min(ends, key=lambda number: abs(count(number) - target))


@dataclass
class Changing:
    """A schedule that is exchanged while a model is compressed by it; None: all tokens stay."""

    current: Schedule | None = None

    def check(self, depth: int) -> None:
        """See ``Schedule``."""

    def kept(self, block: int, n: int) -> int:
        """See ``Schedule``."""
        return n if self.current is None else self.current.kept(block, n)


def check_budget(budget: Any) -> float:
    """A budget as a number. Raises ``ValueError`` where it is none in (0, 1]."""
    if not isinstance(budget, int | float) or isinstance(budget, bool) or not 0.0 < budget <= 1.0:
        raise ValueError(
            f"budget is the share of the multiply-accumulates that may be left and must be in (0, 1], got {budget!r}"
        )
    return float(budget)


def image_shape(model: nn.Module, plan: Plan) -> tuple[int, int, int]:
    """(3, H, W) in pixels of the images that a model is for.

    Raises:
        ValueError: it takes images of any size and does not say which.
    """
    size = plan.host.input_size(model)
    known: Any = getattr(model, "pretrained_cfg", None) or {}
    if size is None and not known.get("input_size"):
        raise ValueError("this model takes images of any size, so no budget can be counted: give ratio in its place")
    height, width = size or known["input_size"][1:]
    return 3, int(height), int(width)


class Counter:
    """Counts one model under many schedules, one image of its own size at a time; the model itself is not touched.

    Args:
        model: a supported host, compressed or not.
        plan: with the method whose own operations count, too; its schedule is not read.

    Raises:
        ValueError: the size of the images is not known, or the number of tokens depends on the image.
    """

    def __init__(self, model: nn.Module, plan: Plan) -> None:
        if plan.method.adaptive:
            raise ValueError(
                f"the number of tokens that {type(plan.method).__name__} keeps depends on the image, so no budget can "
                "be counted from shapes: give ratio in its place"
            )
        self.shape = image_shape(model, plan)
        self.patches, self.plan = math.prod(plan.host.grid(model, self.shape[1:])), plan
        self.first = plan.host.first
        self._mode, self._schedule = _mode(model), Changing()
        self._model = entry.twin(plan.host.runs(model), hooks=False).eval()
        entry.leave_model(self._model)
        self.base = self._count()[0]
        entry.enter(self._model, replace(plan, schedule=self._schedule))

    def count(self, schedule: Schedule) -> tuple[float, list[Step]]:
        """Multiply-accumulates of one image under a schedule, and what each block took of them."""
        self._schedule.current = schedule
        return self._count()

    def share(self, schedule: Schedule) -> float:
        """Multiply-accumulates under a schedule as a share of the uncompressed model's."""
        return self.count(schedule)[0] / self.base

    def _count(self) -> tuple[float, list[Step]]:
        counter = FlopCounterMode(display=False, custom_mapping=UNCOUNTED)
        steps: list[Step] = []
        blocks = entry.blocks_of(self._model, self.plan.host)
        for block in blocks:
            block.__dict__["forward"] = partial(self._step, block, counter, steps)
        like = next(self._model.parameters())
        try:
            with self._mode, torch.no_grad(), counter:
                self._model(torch.zeros(1, *self.shape, dtype=like.dtype, device=like.device))
        finally:
            for block in blocks:
                del block.__dict__["forward"]
        return counter.get_total_flops() / 2, steps

    def _step(self, block: Any, counter: FlopCounterMode, steps: list[Step], x: Any, *args: Any, **kwargs: Any) -> Any:
        before = counter.get_total_flops()
        out = type(block).forward(block, x, *args, **kwargs)
        after = self.plan.host.unpack(out)
        tokens, left = (int(part.shape[1]) - self.plan.prefix for part in (x, after))
        steps.append(Step(tokens, left, (counter.get_total_flops() - before) / 2))
        return out


class Costs:
    """What schedules cost, without running anything: a polynomial in the tokens that enter and leave each block.

    Fitted to a few counts. Exact where the operations of a method are products of its numbers of tokens and widths;
    nearly so for those that split tokens in halves.

    Attributes:
        exact: whether a schedule that was not fitted to is counted within 0.5 %.
        halves: whether a block leaves half of its tokens at least.

    A method that adds a token for all that it drops is seen to.
    """

    def __init__(self, counter: Counter) -> None:
        self.counter, first = counter, counter.first
        self.depth = counter.plan.depth
        tried = [counter.count(_Mixed(phase, first)) for phase in range(FITS)]
        asked = [_Mixed(0, first).kept(first + place, step.tokens) for place, step in enumerate(tried[0][1])]
        over = [step.left - kept for step, kept in zip(tried[0][1], asked, strict=True) if kept < step.tokens]
        self._extra = min(over, default=0)
        self.halves = max(over, default=0) > self._extra
        steps = [step for _, found in tried for step in found]
        self._whole = _fitted([s for s in steps if s.left == s.tokens], _of_whole)
        self._reducing = _fitted([s for s in steps if s.left != s.tokens], _of_reducing)
        rests = [Step(found[-1].left, 0, total - sum(s.cost for s in found)) for total, found in tried]
        self._rest = _fitted(rests, _of_whole)
        check = _Mixed(FITS, first)
        self.exact = abs(self.share(check) / counter.share(check) - 1) < CLOSE

    def left(self, schedule: Schedule) -> list[int]:
        """Patch tokens after each block."""
        tokens, found = self.counter.patches, []
        for block in range(self.counter.first, self.depth):
            asked = schedule.kept(block, tokens)
            if asked < tokens:
                tokens = max(asked + self._extra, tokens - tokens // 2 if self.halves else 1)
            found.append(tokens)
        return found

    def share(self, schedule: Schedule) -> float:
        """Estimate of ``Counter.share``."""
        return self.of(self.left(schedule))

    def of(self, left: Sequence[int]) -> float:
        """The same from the patch tokens after each block."""
        total, tokens = 0.0, self.counter.patches
        for kept in left:
            one = (tokens, kept)
            terms, weights = (_of_whole, self._whole) if kept == tokens else (_of_reducing, self._reducing)
            total += sum(map(mul, terms(*one), weights))
            tokens = kept
        return (total + sum(map(mul, _of_whole(tokens, 0), self._rest))) / self.counter.base


def _mode(model: nn.Module) -> AbstractContextManager[Any]:
    """How one image is counted: by a run of a small model, faster than the bookkeeping of shapes; else by shapes."""
    parameters = list(model.parameters())
    small = sum(p.numel() for p in parameters) < SMALL and not any(p.is_meta for p in parameters)
    return nullcontext() if small else FakeTensorMode(allow_non_fake_inputs=True)


class Step(NamedTuple):
    """One block: the patch tokens that enter and leave it, and its multiply-accumulates."""

    tokens: int
    left: int
    cost: float


@dataclass(frozen=True)
class _Mixed:
    """Schedules whose blocks have all kinds of numbers of tokens: every third block stays whole."""

    phase: int
    first: int
    FEWEST: ClassVar[float] = 0.4

    def check(self, depth: int) -> None:
        """See ``Schedule``."""

    def kept(self, block: int, n: int) -> int:
        """See ``Schedule``."""
        place = block - self.first + self.phase
        share = 1.0 if place % 3 == 0 else (self.FEWEST if place == self.phase + 2 else 0.95 - 0.07 * (place % 4))
        return max(1, int(n * share))


def _of_whole(tokens: int, left: int) -> tuple[float, ...]:
    return 1.0, tokens, tokens * tokens


def _of_reducing(tokens: int, left: int) -> tuple[float, ...]:
    return 1.0, tokens, left, tokens * tokens, tokens * left, left * left


def _fitted(steps: list[Step], terms: Callable[[int, int], tuple[float, ...]]) -> list[float]:
    rows = torch.tensor([terms(step.tokens, step.left) for step in steps], dtype=torch.float64)
    costs = torch.tensor([[step.cost] for step in steps], dtype=torch.float64)
    scale = rows.abs().amax(dim=0)
    return (torch.linalg.lstsq(rows / scale, costs, driver="gelsd").solution.flatten() / scale).tolist()


def ratio_for(counter: Counter, budget: float, schedule: Callable[[float], Schedule]) -> float:
    """The largest keep ratio, in steps of 0.001, whose schedule is within the budget.

    Args:
        counter: of the model with its method.
        budget: share of the uncompressed model's multiply-accumulates, in (0, 1].
        schedule: from a keep ratio.

    Raises:
        ValueError: no keep ratio is, with the blocks that the schedule has.
    """
    share = cache(lambda step: counter.share(schedule(step / STEPS)))
    costs = Costs(counter)
    step, target = 0, budget
    for _ in range(CORRECTIONS):
        found = nearest(lambda step: costs.share(schedule(step / STEPS)), 1, STEPS - 1, target)
        if found == step:
            break
        step = found
        target = budget - (share(step) - costs.share(schedule(step / STEPS)))
    while step > 1 and share(step) > budget:
        step -= 1
    if share(step) > budget:
        raise ValueError(
            f"no keep ratio brings this model to {budget:g} of its multiply-accumulates where it reduces "
            f"({share(step):.3f} at the least): give earlier blocks, or a larger budget"
        )
    return step / STEPS


def budgeted(model: nn.Module, plan: Plan, budget: float, schedule: Callable[[float], Schedule]) -> Schedule:
    """The schedule of the largest keep ratio that is within a budget; see ``ratio_for``."""
    return schedule(1.0 if budget == 1.0 else ratio_for(Counter(model, plan), budget, schedule))
