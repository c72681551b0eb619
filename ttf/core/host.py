"""What the engine asks of a family of models: the facts of a model, how its blocks split, where its tokens leave.

A host names sub-modules and calls them; it never computes what a sub-module does. Most of it has defaults: a new host
says how a block splits (``attended``, ``attend``, ``feed_forward``) and what stands in front of the patch tokens.
Shapes: B batch, N tokens, C channels, P prefix tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from ttf.methods.base import LayerView, Method
from ttf.ops.attention import Wanted
from ttf.ops.reduction import Recovery, Reduction
from ttf.schedule import thirds

Branch = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]  # what goes in (a norm), and the rest
Call = Mapping[str, Any]  # the keyword arguments of a block
Leave = Literal["short", "mean", "max", "tokens", "chain"]


NO_MASKS = "a compressed model takes no attention mask: its tokens are no longer those of the mask"


class Request(NamedTuple):
    """What an attention layer is asked for.

    Attributes:
        sizes: (B, N) that enter as log s (Eq. 7), or None.
        wanted: statistics of the layer.
        prefix: number of prefix tokens P.
        enter: where tokens are reduced at the entrance of the block: takes the statistics of the map of all tokens and
            gives what the layer sees of the new ones, (B, M, C), with their Reduction, which pools the map.
    """

    sizes: Tensor | None = None
    wanted: Wanted = Wanted()
    prefix: int = 0
    enter: Callable[[Attended], tuple[Tensor, Reduction]] | None = None


class Attended(NamedTuple):
    """What an attention layer answers; statistics that were not wanted are None.

    Attributes:
        x: (B, N, C) its output.
        scores, keys, attention, value_norms, class_query, flat_keys: as in ``LayerView``.
    """

    x: Tensor
    scores: Tensor | None = None
    keys: Tensor | None = None
    attention: Tensor | None = None
    value_norms: Tensor | None = None
    class_query: Tensor | None = None
    flat_keys: Tensor | None = None

    def view(self, x: Tensor, prefix: int, normed: Tensor | None = None) -> LayerView:
        """The view of a layer whose tokens are x (B, N, C) after the attention residual."""
        return LayerView(
            x,
            prefix,
            scores=self.scores,
            keys=self.keys,
            normed=normed,
            attention=self.attention,
            value_norms=self.value_norms,
            class_query=self.class_query,
            flat_keys=self.flat_keys,
        )


class Exit(NamedTuple):
    """A module behind the blocks, where tokens become a tensor again.

    Attributes:
        path: of the module.
        leave: as what tokens leave where they stay short. "short": as they are; "mean": times s_i / mean(s), so that a
            plain mean over them weighs by size; "max": with copies of a real token in place of padding; "tokens": as
            ``Tokens``, for a head that needs the sizes; "chain": as they came, for a
            model that brings dense ones back later.
        first: the first token that the mean is over.
    """

    path: str
    leave: Leave = "short"
    first: int = 0


def check_module(model: Any) -> None:
    """Raise ``ValueError`` for what is no model."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"a model is a torch.nn.Module, got {type(model).__name__}")


class Host(ABC):
    """One family of models; hosts hold no state of a model.

    Attributes:
        container: path of the blocks, a ``nn.Sequential`` or ``nn.ModuleList``.
        first: number of the first of them: how many layers there are in front that always stay whole.
        positional: names of the arguments of a block behind its tokens.
        places: names of the places where dense tokens can come back, the first one unless told; () without a choice.
        recovery: how dense tokens come back where nothing is told; None: they do not.
        early: tokens come back once, behind all blocks: a budget alone reduces at ``ttf.schedule.early_blocks``.
        rotary: queries and keys are rotated by place, so every token must have one.
        merges_inside: it has ``branches``, for methods that merge inside a branch.
        pools_maps: it has ``enter``, for methods that reduce tokens at the entrance of a block.
        mixin: class that comes before a compressed model's own, for what blocks and exits cannot do; or None.
        block_mixin: class that comes before a block's own; None: ``ttf.core.compressed.CompressedBlock``.
        choices: further options of ``ttf.apply`` that models of this kind have, and the values of each, the default
            first.
    """

    container: str = "blocks"
    first: int = 0
    positional: tuple[str, ...] = ()
    places: tuple[str, ...] = ()
    recovery: Recovery | None = None
    early: bool = False
    rotary: bool = False
    merges_inside: bool = False
    pools_maps: bool = False
    mixin: type | None = None
    block_mixin: type | None = None
    choices: Mapping[str, tuple[str, ...]] = {}

    def chosen(self, **options: str) -> Host:
        """This host with other ``choices``, or another of its ``places`` as ``recover_at``."""
        return type(self)(**options)

    # facts of a model

    def check_method(self, method: Method) -> None:  # noqa: B027 (a default that hosts may keep)
        """Raise ``ValueError`` for a method that models of this kind cannot be compressed with."""

    def check(self, model: Any) -> None:  # noqa: B027 (a default that hosts may keep)
        """Raise ``ValueError`` for a model whose parts are not among those known here."""

    def prefix(self, model: Any) -> int:
        """Number of tokens in front of the patch tokens."""
        return int(model.num_prefix_tokens)

    def class_token(self, model: Any) -> bool:
        """Whether the first of them is a class token."""
        return self.prefix(model) > 0

    def reads_class_token(self, model: Any) -> bool:
        """Whether the head reads the class token (or distillation token) and nothing else."""
        return False

    def default_blocks(self, depth: int) -> tuple[int, ...]:
        """Where to reduce unless told."""
        return thirds(depth)

    @abstractmethod
    def grid(self, model: Any, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the patches of images of ``size`` (height, width)."""

    def input_size(self, model: Any) -> tuple[int, int] | None:
        """(height, width) of the images that the model was built for, or None where it takes any."""
        return None

    def exits(self, model: Any) -> tuple[Exit, ...]:
        """Where tokens leave."""
        return (Exit("norm"),)

    def runs(self, model: nn.Module) -> nn.Module:
        """The part of the model that takes images and holds the blocks."""
        return model

    def exit_class(self, path: str) -> type | None:
        """The class that an exit gets; None: ``ttf.core.compressed.CompressedExit``."""
        return None

    def others(self, model: Any) -> list[tuple[nn.Module, type]]:
        """Further modules whose class is exchanged, and what comes before it."""
        return []

    def knows_forward(self, model: Any) -> bool:
        """Whether the forward of the model is the library's own, which is known to call blocks and exits."""
        return True

    # parts of a block

    def attentions(self, block: Any) -> tuple[nn.Module, ...]:
        """The modules that are called for attention, whose class is exchanged."""
        return (block.attn,)

    def names(self, block: Any) -> tuple[str, ...]:
        """Names of the arguments of a block behind its tokens."""
        return self.positional

    def arguments(self, call: Call, places: Tensor | None) -> Call:
        """The keyword arguments of a block for tokens at other places than their own.

        Raises:
            ValueError: an argument that does not go with compression (an attention mask).
        """
        return call

    @abstractmethod
    def attended(self, attention: Any, x: Tensor, request: Request, call: Call) -> Attended:
        """What ``attention`` makes of tokens x (B, N, C), and what was wanted of it."""

    @abstractmethod
    def attend(self, block: Any, x: Tensor, request: Request, call: Call) -> LayerView:
        """The first half of a block: tokens after the attention residual. Calls its attention layer with ``ask``."""

    @abstractmethod
    def feed_forward(self, block: Any, x: Tensor) -> Tensor:
        """The second half of a block: tokens after the feed-forward residual."""

    def branches(self, block: Any, call: Call) -> tuple[Branch, Branch]:
        """The residual branches: the block is x + rest(norm(x)), twice. For methods that merge inside a branch."""
        raise NotImplementedError

    def enter(
        self,
        block: Any,
        x: Tensor,
        request: Request,
        call: Call,
        reduce: Callable[[Attended], tuple[Tensor, Reduction]],
    ) -> Tensor:
        """The first half of a block whose tokens x (B, N, C) are reduced at its entrance, (B, M, C).

        The layer computes the attention map of all tokens; ``reduce`` makes of its statistics the new tokens, which
        have the values and the residual, and the Reduction that pools the map.
        """
        raise NotImplementedError

    def unpack(self, out: Any) -> Tensor:
        """The tokens in what a block of the library returns."""
        return out

    def pack(self, block: Any, out: Any) -> Any:
        """What a block of the library returns, from its tokens."""
        return out


def ask(attention: nn.Module, x: Tensor, request: Request, call: Call) -> Attended:
    """Call a compressed attention module as any module, so that its hooks fire."""
    return attention(x, ttf_request=request, **call)
