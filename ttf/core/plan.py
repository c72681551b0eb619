"""What is decided once, by ``ttf.apply``, and read by every compressed module."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ttf.methods.base import LayerView, Method
from ttf.ops.attention import Wanted, check_score_rows
from ttf.ops.reduction import Recovery, Reduction
from ttf.schedule import Schedule

if TYPE_CHECKING:
    from ttf.core.host import Host


class Observer:
    """Watches a twin of a model from inside; the base class wants nothing and looks at nothing.

    Attributes:
        wanted: what ``view`` is to hold of the blocks in ``blocks``, which then stay whole.
        blocks: numbers of those blocks.
    """

    wanted: Wanted = Wanted()
    blocks: tuple[int, ...] = ()

    def view(self, block: int, view: LayerView) -> None:
        """What one of ``blocks`` knows after its attention."""

    def reduction(self, block: int, reduction: Reduction) -> None:
        """What a reducing block did."""


@dataclass(frozen=True)
class Plan:
    """How a model is compressed.

    Attributes:
        method: turns what a layer knows into a Reduction.
        schedule: which blocks reduce, to how many patch tokens.
        host: how the model's blocks split, and its facts.
        prefix: number of prefix tokens P.
        class_token: whether the first of them is a class token (registers alone are none).
        recovery: how dense tokens come back at the end of the blocks, or None to leave the sequence short.
        grid: (rows, columns) of the patch tokens of the images that the model was built for, where it says so.
        depth: number of blocks of the model.
        observer: of a twin, or None.
    """

    method: Method
    schedule: Schedule
    host: Host
    prefix: int
    class_token: bool
    recovery: Recovery | None = None
    grid: tuple[int, int] | None = None
    depth: int = 12
    observer: Observer | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        name, wanted = type(self.method).__name__, self.method.wanted
        check_score_rows(wanted.score_rows, int(self.class_token))
        if wanted.needs_class_token and not self.class_token:
            raise ValueError(f"{name} needs a class token, and this model has none")
        if self.method.per_branch and not self.host.merges_inside:
            raise ValueError(f"{name} merges inside the branches of a block, which models of this kind do not allow")
        if self.method.at_entrance and not self.host.pools_maps:
            raise ValueError(
                f"{name} reduces tokens at the entrance of a block and pools its attention map, which models of this "
                "kind do not allow: use place=between"
            )
        self.host.check_method(self.method)
        if self.host.rotary and not self.method.names_tokens:
            raise ValueError(
                f"this model rotates queries and keys by place, and {name} makes tokens that have none: "
                "take a method (or options of it) whose new tokens each grow from one old token"
            )


@dataclass(frozen=True)
class Place:
    """What one compressed module knows: the plan and, where it reduces, its number.

    Blocks that never reduce share one object, so that code compiled for one of them serves all.

    Attributes:
        plan: of the model.
        number: of a block that may reduce, 0-based; -1 for blocks that never do and for other modules.
    """

    plan: Plan
    number: int = -1
