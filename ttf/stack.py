"""The compressed run over a host's blocks: tokens, sizes and the chain of reductions go from block to block in locals.

Nothing is kept on any module, so one model may be used by several threads, compiled with ``fullgraph=True``,
exported, copied and pickled. Shapes: B batch, N tokens, C channels.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ttf.methods.base import LayerView, Method
from ttf.ops.attention import Wanted, check_score_rows
from ttf.ops.recovery import nearest_token
from ttf.ops.reduction import LocalReduction, Recovery, Reduction, recover
from ttf.schedule import Schedule

if TYPE_CHECKING:
    from ttf.hosts import Host

NOTHING = Wanted()


@dataclass(frozen=True)
class Plan:
    """How a stack is compressed.

    Attributes:
        method: turns what a layer knows into a Reduction.
        schedule: which blocks reduce, to how many patch tokens.
        host: how the blocks split into attention and feed-forward.
        prefix: number of prefix tokens P.
        recovery: how dense tokens come back at the end of the stack, or None to leave the short sequence.
    """

    method: Method
    schedule: Schedule
    host: Host
    prefix: int
    recovery: Recovery | None = None

    def __post_init__(self) -> None:
        check_score_rows(self.method.wanted.score_rows, self.prefix)
        if self.method.wanted.needs_class_token and not self.prefix:
            raise ValueError(f"{type(self.method).__name__} needs a class token, and this model has none")


class State(NamedTuple):
    """What goes from block to block.

    Attributes:
        x: (B, N, C) tokens.
        sizes: (B, N) float32, or None while all are 1.
        chain: (block, Reduction) of every reducing block so far.
        grid: (rows, columns) of the patch tokens, or None where they lie on no grid (any more).
    """

    x: Tensor
    sizes: Tensor | None = None
    chain: tuple[tuple[int, Reduction], ...] = ()
    grid: tuple[int, int] | None = None

    def dense(self) -> Tensor:
        """The tokens on the grid that they started from."""
        return recover(tuple(reduction for _, reduction in self.chain), self.x)


def _local(block: nn.Module, number: int, plan: Plan, state: State, keep: int) -> State:
    """One block on fewer tokens, with all of them back at its end."""
    reduction = plan.method.reduce(LayerView(state.x, plan.prefix, block=number, grid=state.grid), keep)
    assert isinstance(reduction, LocalReduction)
    x = reduction.close(block(reduction.down(state.x)), state.x)
    return state._replace(x=x, chain=(*state.chain, (number, reduction)))


def _per_branch(block: nn.Module, number: int, plan: Plan, state: State, keep: int) -> State:
    """One block, each of its two branches on fewer tokens; nothing is left to undo, so the chain stays as it is."""
    x = state.x
    for norm, branch in plan.host.branches(block):
        normed = norm(x)
        reduction = plan.method.reduce(LayerView(normed, plan.prefix, block=number, grid=state.grid), keep)
        x = x + reduction.up(branch(reduction.down(normed)))
    return state._replace(x=x)


def _advance(block: nn.Module, number: int, plan: Plan, recovery: Recovery | None, state: State) -> State:
    """One block: attention, reduction if the schedule says so, feed-forward."""
    x, sizes, chain, grid = state
    keep = plan.prefix + plan.schedule.kept(number, x.shape[1] - plan.prefix)
    log_sizes = sizes if plan.method.scaling else None
    if keep >= x.shape[1]:
        if log_sizes is None:
            return state._replace(x=block(x))
        view = plan.host.attend(block, x, log_sizes, NOTHING, plan.prefix)
        return state._replace(x=plan.host.feed_forward(block, view.x))
    if plan.method.around:
        return _local(block, number, plan, state, keep)
    if plan.method.per_branch:
        return _per_branch(block, number, plan, state, keep)
    view = plan.host.attend(block, x, log_sizes, plan.method.wanted, plan.prefix)
    view = replace(view, sizes=sizes, block=number, grid=grid)
    reduction = plan.method.reduce(view, keep)
    y = reduction.down(view.x)
    if recovery == "nearest" and reduction.nearest is None:
        padded = reduction.sizes if plan.method.adaptive else None
        reduction = replace(reduction, nearest=nearest_token(view.x, y, plan.prefix, padded))
    chain = (*chain, (number, reduction.settled()))
    return State(plan.host.feed_forward(block, y), reduction.sizes, chain, reduction.grid)


def _square(patches: int) -> tuple[int, int] | None:
    """The grid of that many patches, where they make a square."""
    side = math.isqrt(patches)
    return (side, side) if side * side == patches else None


class CompressedStack(nn.Sequential):
    """A host's blocks under their own names (``state_dict`` keys do not change), run with token reduction.

    Args:
        blocks: the host's container; kept aside and given back by ``restored``.
        plan: how to compress.
    """

    def __init__(self, blocks: nn.Sequential, plan: Plan) -> None:
        super().__init__(OrderedDict(blocks.named_children()))
        self.plan = plan
        self._original = (blocks,)  # in a tuple, so that it is no submodule and its keys do not count twice
        self.training = blocks.training

    def __getitem__(self, index: Any) -> Any:
        """A block, or for a slice a plain ``nn.Sequential`` of blocks."""
        if isinstance(index, slice):
            return nn.Sequential(OrderedDict(list(self._modules.items())[index]))
        return super().__getitem__(index)

    def restored(self) -> nn.Sequential:
        """The host's own container, with the blocks as they are now."""
        original = self._original[0]
        original._modules.clear()
        original._modules.update(self._modules)
        original.training = self.training
        return original

    def run(
        self,
        x: Tensor,
        *,
        recovery: Recovery | None = None,
        checkpointed: bool = False,
        after: Callable[[int, State], None] | None = None,
        grid: tuple[int, int] | None = None,
    ) -> State:
        """Run all blocks on tokens x (B, N, C).

        Args:
            x: tokens with P prefix tokens at the front.
            recovery: make the reductions able to recover in this way; None: as the plan says.
            checkpointed: recompute activations in the backward pass.
            after: called with (block number, state) after every block.
            grid: (rows, columns) of the patch tokens; None: a square, if their number makes one.

        Returns:
            The final state, on the short sequence.
        """
        recovery = recovery or self.plan.recovery
        state = State(x, grid=grid or _square(x.shape[1] - self.plan.prefix))
        for number, block in enumerate(self, self.plan.host.first):
            arguments: tuple[Any, ...] = (block, number, self.plan, recovery, state)
            state = checkpoint(_advance, *arguments, use_reentrant=False) if checkpointed else _advance(*arguments)
            if after is not None:
                after(number, state)
        return state

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, N, C) to tokens (B, M, C), or (B, N, C) where the plan recovers."""
        state = self.run(x)
        return state.dense() if self.plan.recovery else state.x

    def extra_repr(self) -> str:
        return f"{self.plan.method}, {self.plan.schedule}"


def shallow_twin(model: nn.Module) -> Any:
    """A second module over the same parameters, whose children can be exchanged without touching ``model``."""
    twin = object.__new__(type(model))
    twin.__dict__.update(model.__dict__)
    twin.__dict__["_modules"] = dict(model._modules)
    return twin


def twin_with(model: nn.Module, path: str, container: nn.Module) -> nn.Module:
    """A ``shallow_twin`` with another container of blocks at ``path`` ("blocks", "encoder.blocks")."""
    twin, (child, _, rest) = shallow_twin(model), path.partition(".")
    twin._modules[child] = twin_with(twin._modules[child], rest, container) if rest else container
    return twin
