"""DPT: its ViT is compressed, and dense again where the head reads it. Its blocks are timm's.

Shapes: B batch, N patch tokens, M transformed tokens.
"""

from __future__ import annotations

from typing import Any

from timm.layers import Attention
from torch import Tensor, nn

from ttf.core.exchange import Exchanged, own_class
from ttf.core.host import Exit, Host
from ttf.core.plan import Place
from ttf.core.tokens import Tokens
from ttf.hosts.segmenter import dense_blocks
from ttf.hosts.timm_vit import BLOCKS, TimmBlocks, check_blocks
from ttf.models.dpt import DPT
from ttf.ops.reduction import Recovery

PLACES = ("taps", "reassembled")
PREFIX = 1


class CompressedDPT(Exchanged):
    """The model, whose maps are made of tokens that come back."""

    ttf_place: Place
    at_taps = True

    def embed(self: Any, images: Tensor) -> tuple[Any, list[Tensor]]:
        """As the model's own; the tokens carry the grid of the images."""
        tokens, maps = super().embed(images)
        recovery = self.ttf_place.plan.recovery
        return Tokens(tokens, grid=self.grid(images.shape[-2:]), recovery=recovery), maps

    def reassemble(self: Any, number: int, tokens: Any, grid: tuple[int, int]) -> Tensor:
        """As the model's own, from tokens behind a tap."""
        if isinstance(tokens, Tensor):
            return super().reassemble(number, tokens, grid)
        if self.at_taps or not tokens.chain:
            return super().reassemble(number, tokens.dense(), grid)
        part = self.pretrained.get_submodule(f"act_postprocess{number}")
        short = part.narrow(tokens.x)
        behind = short.new_zeros(
            len(short), PREFIX + short.shape[1], short.shape[2]
        )  # reductions count the class token
        behind[:, PREFIX:] = short
        return part.as_map(tokens._replace(x=behind).dense()[:, PREFIX:], grid)


class NarrowedDPT(CompressedDPT):
    """The same, where tokens come back behind the readout and the 1x1 convolution."""

    at_taps = False


class DPTHost(TimmBlocks):
    """A host whose head reads every patch at several blocks, so tokens come back even where the plan does not ask.

    Args:
        recover_at: "taps": tokens come back behind the tapped blocks, before anything is made of them.
            "reassembled": the readout and the 1x1 convolution, which go token by token, run on the transformed
            tokens, and their outputs come back. For copies of the nearest token (Eq. 9) that is the same at less cost;
            for reconstructions from several tokens it is not, as a GELU lies between.

    Raises:
        ValueError: another place.
    """

    container = "pretrained.model.blocks"
    places: tuple[str, ...] = PLACES
    recovery: Recovery | None = "nearest"

    def __init__(self, recover_at: str = "taps") -> None:
        if recover_at not in PLACES:
            raise ValueError(f"recover_at must be one of {', '.join(PLACES)}, got {recover_at!r}")
        self.recover_at = recover_at
        self.mixin = CompressedDPT if recover_at == "taps" else NarrowedDPT

    def check(self, model: Any) -> None:
        """Raise ``ValueError`` for a subclass, whose own forward would be lost."""
        if own_class(model) is not DPT:
            raise ValueError(f"{type(model).__name__} is a subclass of DPT: ttf can enter a plain DPT only")
        check_blocks(model, model.vit.blocks, BLOCKS, (Attention,))

    def prefix(self, model: Any) -> int:
        """A class token."""
        return PREFIX

    def default_blocks(self, depth: int) -> tuple[int, ...]:
        """See ``dense_blocks``."""
        return dense_blocks(depth)

    def grid(self, model: Any, size: tuple[int, int]) -> tuple[int, int]:
        """See ``DPT.grid``."""
        return model.grid(size)

    def exits(self, model: Any) -> tuple[Exit, ...]:
        """None: what the taps read is made dense by the model."""
        return ()


class HybridHost(DPTHost):
    """A host of a DPT whose fine maps are its ResNet's."""

    def default_blocks(self, depth: int) -> tuple[int, ...]:
        """One block, 2 of 12: at a ratio of 0.25 the whole network has the GMACs of the paper."""
        return (depth // 4 - 1,)


def host(model: nn.Module) -> Host:
    """The host of a ``DPT``."""
    return HybridHost() if isinstance(model, DPT) and model.hybrid else DPTHost()
