"""Which blocks reduce, and to how many tokens.

A schedule answers one question: ``kept(block, n)``, the number of patch tokens that remain of n after block ``block``
(0-based), or n where that block does not reduce. Prefix tokens never count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from ttf.checks import check_types

Rounding = Literal["floor", "round", "ceil"]
ROUNDINGS = ("floor", "round", "ceil")
EPSILON = 1e-9  # 0.29 * 100 is 28.999999999999996


class Schedule(Protocol):
    """Interface: see the module's text.

    A schedule may also have ``reduces(block) -> bool``: False promises that ``kept`` never takes a token there, which
    lets code that was compiled for one such block serve all of them.
    """

    def kept(self, block: int, n: int) -> int: ...

    def check(self, depth: int) -> None:
        """Raise ``ValueError`` where the schedule names blocks that a model of ``depth`` blocks does not have."""


def reduces(schedule: Schedule, block: int) -> bool:
    """Whether a schedule may take tokens at a block; True where it does not say."""
    says = getattr(schedule, "reduces", None)
    return True if says is None else says(block)


def thirds(depth: int) -> tuple[int, ...]:
    """The default places: the starts of the 2nd, 3rd and 4th quarter, 3, 6, 9 of 12 (the paper's)."""
    return tuple(sorted({i * depth // 4 for i in (1, 2, 3)}))


def _check_blocks(blocks: tuple[int, ...], depth: int) -> None:
    wrong = [b for b in blocks if not 0 <= b < depth]
    if wrong:
        raise ValueError(f"blocks {wrong} are out of range: the model has blocks 0 to {depth - 1}")


def check_whole(schedule: Schedule, first: int, depth: int) -> None:
    """Raise ``ValueError`` where the schedule names blocks in front of ``first``, which stay whole."""
    whole = [block for block in getattr(schedule, "blocks", None) or () if block < first]
    if whole:
        raise ValueError(f"blocks {whole} stay whole: tokens of this model go at blocks {first} to {depth - 1}")


@dataclass(frozen=True)
class KeepRatio:
    """Keep a share of the current patch tokens at each of some blocks.

    Attributes:
        ratio: keep ratio in (0, 1]; 1 keeps every token and changes nothing.
        blocks: 0-based, where to reduce.
        rounding: of ratio * n: "floor" (fits most of the paper's GFLOPs), "round" or "ceil". At least one token stays.

    Raises:
        ValueError: a value out of its range.
    """

    ratio: float
    blocks: tuple[int, ...]
    rounding: Rounding = "floor"

    def __post_init__(self) -> None:
        check_types(KeepRatio, vars(self))
        if not 0.0 < self.ratio <= 1.0:
            raise ValueError(f"ratio is the share of tokens to keep and must be in (0, 1], got {self.ratio}")
        if self.rounding not in ROUNDINGS:
            raise ValueError(f"rounding must be one of {', '.join(ROUNDINGS)}, got {self.rounding!r}")
        if len(set(self.blocks)) != len(self.blocks):
            raise ValueError(f"blocks {list(self.blocks)} name a block twice")

    def check(self, depth: int) -> None:
        _check_blocks(self.blocks, depth)

    def reduces(self, block: int) -> bool:
        return block in self.blocks and self.ratio < 1.0

    def kept(self, block: int, n: int) -> int:
        if block not in self.blocks or self.ratio == 1.0 or n <= 1:
            return n
        exact = self.ratio * n
        if self.rounding == "ceil":
            return max(1, math.ceil(exact - EPSILON))
        return max(1, math.floor(exact + (EPSILON if self.rounding == "floor" else 0.5)))


@dataclass(frozen=True)
class RemovePerBlock:
    """Remove r patch tokens in every block (or in the given ones), never more than half of what is there.

    Attributes:
        r: tokens removed per block, >= 0; or one number for each block, none after the last of them.
        blocks: 0-based, or None for all.
        inflection: in [-1, 1], makes r grow (above 0) or shrink (below 0) evenly from block to block, with the same
            mean: 1 goes from 0 to 2r, -1 from 2r to 0.
        depth: number of blocks that the inflection spreads over, that of the model.

    Raises:
        ValueError: a value out of its range, or an inflection of a list.
    """

    r: int | Sequence[int]
    blocks: tuple[int, ...] | None = None
    inflection: float = 0.0
    depth: int = 12

    def __post_init__(self) -> None:
        check_types(RemovePerBlock, vars(self))
        if not isinstance(self.r, int):
            object.__setattr__(self, "r", tuple(self.r))  # configs hold lists
        listed = (self.r,) if isinstance(self.r, int) else self.r
        if any(r < 0 for r in listed):
            raise ValueError(f"r is the number of tokens to remove per block and must be >= 0, got {self.r}")
        if not -1.0 <= self.inflection <= 1.0:
            raise ValueError(f"inflection must be in [-1, 1], got {self.inflection}")
        if self.inflection and not isinstance(self.r, int):
            raise ValueError("inflection goes with one r, not with a list of one r per block")
        if self.inflection and self.depth < 2:
            raise ValueError(f"an inflection spreads over at least 2 blocks, got depth {self.depth}")

    def check(self, depth: int) -> None:
        _check_blocks(self.blocks or (), depth)
        if self.inflection and depth != self.depth:
            raise ValueError(
                f"the inflection is for depth {self.depth}, the model has {depth} blocks: set depth to that"
            )
        if not isinstance(self.r, int) and len(self.r) > depth:
            raise ValueError(f"r lists {len(self.r)} blocks, the model has {depth}")

    def _removed(self, block: int) -> int:
        if not isinstance(self.r, int):
            return self.r[block] if block < len(self.r) else 0
        if not self.inflection:
            return self.r
        first = int(self.r * (1.0 - self.inflection))
        step = 2 * (self.r - first) / (self.depth - 1)
        return int(first + step * block)

    def reduces(self, block: int) -> bool:
        return (self.blocks is None or block in self.blocks) and self._removed(block) > 0

    def kept(self, block: int, n: int) -> int:
        active = self.blocks is None or block in self.blocks
        return n - min(self._removed(block), n // 2) if active else n


@dataclass(frozen=True)
class RemoveShare:
    """Remove a share of the tokens in every block (or in the given ones), never more than half of the patch tokens.

    Of n tokens floor(n - n ratio) go, in double precision: so PiToMe and ToFu count, and with blocks 3, 6, 9 MCTF.

    Attributes:
        ratio: keep ratio in (0, 1]; 1 changes nothing.
        blocks: 0-based, or None for all.
        counted: how many prefix tokens count among the n (ToFu's class token does, 1), though they stay.

    Raises:
        ValueError: a value out of its range.
    """

    ratio: float
    blocks: tuple[int, ...] | None = None
    counted: int = 0

    def __post_init__(self) -> None:
        check_types(RemoveShare, vars(self))
        if not 0.0 < self.ratio <= 1.0:
            raise ValueError(f"ratio is the share of tokens to keep and must be in (0, 1], got {self.ratio}")
        if self.counted < 0:
            raise ValueError(f"counted is a number of prefix tokens and must be >= 0, got {self.counted}")

    def check(self, depth: int) -> None:
        _check_blocks(self.blocks or (), depth)

    def reduces(self, block: int) -> bool:
        return (self.blocks is None or block in self.blocks) and self.ratio < 1.0

    def kept(self, block: int, n: int) -> int:
        if not self.reduces(block):
            return n
        tokens = n + self.counted
        return n - min(math.floor(tokens - tokens * self.ratio), n // 2)


@dataclass(frozen=True)
class Counts:
    """Explicit numbers of patch tokens after given blocks.

    Attributes:
        counts: pairs (block, number of patch tokens kept).
    """

    counts: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        check_types(Counts, vars(self))
        if any(count < 1 for _, count in self.counts):
            raise ValueError("every count must be at least 1")

    def check(self, depth: int) -> None:
        _check_blocks(tuple(block for block, _ in self.counts), depth)

    def reduces(self, block: int) -> bool:
        return block in dict(self.counts)

    def kept(self, block: int, n: int) -> int:
        return min(n, dict(self.counts).get(block, n))


# Where ``late_blocks`` reduces, in twelfths of the depth, for budgets from these on.
LATE_BLOCKS = ((0.575, (4, 6, 8)), (0.45, (3, 5, 7)), (0.0, (2, 4, 6, 8)))
EARLY_BLOCKS = ((0.575, (1, 4, 7)), (0.0, (1, 3, 6)))  # of ``early_blocks``


def late_blocks(budget: float, depth: int) -> tuple[int, ...]:
    """Where ``Late`` reduces best under a budget: at every other block, from an earlier one on the less may be left.

    Chosen by what was measured on one half of the photographs, see docs/search.md.

    Args:
        budget: share of the multiply-accumulates that may be left, in (0, 1].
        depth: number of blocks of the model.
    """
    return _places(LATE_BLOCKS, budget, depth)


def early_blocks(budget: float, depth: int) -> tuple[int, ...]:
    """Where a keep ratio reduces best under a budget if all tokens come back once, behind the blocks.

    A token that is the same for its neighbours costs in every block, and what it is replaced by is found again at the
    end. Chosen on training images of CamVid and of scenes, see docs/search.md.

    Args:
        budget, depth: as for ``late_blocks``.
    """
    return _places(EARLY_BLOCKS, budget, depth)


def _places(known: Sequence[tuple[float, tuple[int, ...]]], budget: float, depth: int) -> tuple[int, ...]:
    twelfths = next(places for least, places in known if budget >= least)
    return tuple(sorted({place * depth // 12 for place in twelfths}))


@dataclass(frozen=True)
class Late:
    """Later than the paper, for heads that read the class token alone; beyond the paper.

    At a keep ratio around 0.7 the answer moves less than with blocks 3, 6, 9 at the same cost (docs/reproduction.md).
    In the last block, whose patch tokens nothing reads any more, one of them is left after the attention: that changes
    no logit where the class token is isolated.

    Attributes:
        ratio: keep ratio in (0, 1] at each of ``blocks``.
        depth: number of blocks of the model.
        blocks: 0-based, where to reduce; None: 4, 6, 8 of 12, in proportion for other depths.

    Raises:
        ValueError: a value out of its range.
    """

    ratio: float
    depth: int = 12
    blocks: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        check_types(Late, vars(self))
        self._stages.check(self.depth)

    @property
    def _stages(self) -> KeepRatio:
        blocks = tuple(sorted({i * self.depth // 6 for i in (2, 3, 4)})) if self.blocks is None else self.blocks
        return KeepRatio(self.ratio, tuple(blocks))

    def check(self, depth: int) -> None:
        if depth != self.depth:
            raise ValueError(f"the schedule is for {self.depth} blocks, the model has {depth}: set depth={depth}")

    def reduces(self, block: int) -> bool:
        return self._stages.reduces(block) or (block == self.depth - 1 and self.ratio < 1.0)

    def kept(self, block: int, n: int) -> int:
        if block == self.depth - 1 and self.ratio < 1.0:
            return 1
        return self._stages.kept(block, n)
