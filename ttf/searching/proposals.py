"""Which schedules a search tries: seeds, and changes of the best ones, all at the same cost.

A profile is a list with the patch tokens after every block that may reduce, as real numbers; counts are whole ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from ttf.budget import Costs

Counts = tuple[int, ...]
Profile = Sequence[float]
HALVINGS = 40  # of the exponent
LARGEST = 40.0
FEWEST = 0.04  # of the patch tokens, while blocks follow
# equal cuts at other places, blocks of 12
CUTS = ((4, 6, 8), (4, 7), (3, 5, 8), (5, 7, 9), (3, 4, 6, 8), (4, 5, 7, 8), (2, 4, 6, 8), (5, 8), tuple(range(11)))
# what a search for ViT-Ti at 65 % typically finds: shares of the patch tokens after each of 12 blocks
TYPICAL = (1.0, 1.0, 1.0, 1.0, 0.71, 0.56, 0.49, 0.49, 0.36, 0.28, 0.28, 0.28)


@dataclass(frozen=True)
class Space:
    """The schedules of one cost.

    Attributes:
        costs: of the model with its method.
        budget: share of the uncompressed model's multiply-accumulates.
        free_tail: whether patch tokens are of no use behind the last attention.
    """

    costs: Costs
    budget: float
    free_tail: bool

    @property
    def patches(self) -> int:
        """How many enter the blocks."""
        return self.costs.counter.patches

    @property
    def length(self) -> int:
        """Number of blocks that may reduce, the last one, which follows, not counted."""
        return self.costs.depth - self.costs.counter.first - 1

    def counts(self, profile: Profile) -> Counts:
        """Whole numbers that never grow, none below the fewest, at most halved where the method needs that."""
        least, before, found = max(1, math.ceil(FEWEST * self.patches)), self.patches, []
        for value in profile:
            kept = max(least, self._half(before), min(before, round(value)))
            found.append(min(before, kept))
            before = found[-1]
        return (*found, max(1, self._half(before)) if self.free_tail else before)

    def _half(self, tokens: int) -> int:
        return tokens - tokens // 2 if self.costs.halves else 0

    def fitted(self, profile: Profile) -> Counts | None:
        """The counts nearest to the budget: shares of the patches to the power that makes it so; None: none are."""
        shares = [min(1.0, max(value / self.patches, 1e-3)) for value in profile]

        def counts(power: float) -> Counts:
            return self.counts([self.patches * share**power for share in shares])

        low, high = 0.0, LARGEST
        if self.costs.of(counts(high)) > self.budget:
            return None
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (low, middle) if self.costs.of(counts(middle)) <= self.budget else (middle, high)
        return counts(high)

    def stretched(self, shares: Sequence[float]) -> list[float]:
        """A profile for as many blocks from one that is written for another depth."""
        last = len(shares) - 1
        places = [block * last / max(1, self.length) for block in range(self.length)]
        below = [min(int(place), last - 1) for place in places]
        return [
            self.patches * (shares[at] + (place - at) * (shares[at + 1] - shares[at]))
            for at, place in zip(below, places, strict=True)
        ]

    def seeds(self, default_blocks: Sequence[int]) -> list[Counts]:
        """Where a search starts: equal cuts at the default blocks first, then others."""
        first = self.costs.counter.first
        places = [first + block + 1 for block in range(self.length)]
        depth = self.costs.depth
        cuts = [tuple(default_blocks), *(tuple(block * depth // 12 for block in one) for one in CUTS)]
        profiles = [[self.patches * 0.7 ** sum(place > block for block in one) for place in places] for one in cuts]
        linear = [self.patches * (1 - 0.6 * place / depth) for place in places]
        found = (self.fitted(one) for one in (*profiles, linear, self.stretched(TYPICAL)))
        return list(dict.fromkeys(counts for counts in found if counts is not None))


def _ordered(values: list[float], forward: bool) -> list[float]:
    """Values that never grow: later ones lowered, or earlier ones raised."""
    if forward:
        return [min(values[: place + 1]) for place in range(len(values))]
    return [max(values[place:]) for place in range(len(values))]


def _moved(values: list[float], draw: Random, width: float, patches: int) -> list[float]:
    """More or fewer tokens in a run of blocks."""
    first = draw.randrange(len(values))
    last = min(len(values) - 1, first + int(draw.expovariate(0.6)))
    factor = math.exp(draw.gauss(0.0, width))
    changed = [min(patches, value * factor) if first <= place <= last else value for place, value in enumerate(values)]
    return _ordered(changed, factor < 1 or draw.random() < 0.3)


def _joined(values: list[float], draw: Random, width: float, patches: int) -> list[float]:
    """A reduction one block earlier, or one block later."""
    place = draw.randrange(len(values))
    if draw.random() < 0.5 and place + 1 < len(values):
        values[place] = values[place + 1]
    else:
        values[place] = values[place - 1] if place else patches
    return values


MOVES: tuple[Callable[[list[float], Random, float, int], list[float]], ...] = (_moved, _moved, _joined)


def changed(parents: Sequence[Counts], draw: Random, width: float, space: Space) -> Counts | None:
    """One child of the parents, best first: of one of them, or between and beyond two.

    Args:
        parents: whole schedules, the last block included.
        draw: random numbers.
        width: of a change: standard deviation of the logarithm of a number of tokens.
        space: schedules of this cost.
    """
    rank = min(int(draw.expovariate(0.7)), len(parents) - 1)
    values = [float(count) for count in parents[rank][: space.length]]
    if len(parents) > 2 and draw.random() < 0.35:
        one, other = draw.sample(range(len(parents)), 2)
        step = draw.uniform(0.2, 1.0)
        pairs = zip(values, parents[one], parents[other], strict=False)
        values = _ordered([min(space.patches, v * (a / b) ** step) for v, a, b in pairs], True)
    else:
        for _ in range(1 + (draw.random() < 0.4)):
            values = draw.choice(MOVES)(values, draw, width, space.patches)
    return space.fitted(values)
