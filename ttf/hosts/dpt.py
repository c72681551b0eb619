"""DPT: its ViT is compressed, and dense again where the head reads it. Its blocks are timm's.

Shapes: B batch, N patch tokens, M transformed tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ttf.core.exchange import Exchanged
from ttf.core.host import Exit, Host
from ttf.core.plan import Place
from ttf.core.tokens import Tokens
from ttf.hosts.dense import PREFIX, DenseHost, known_place
from ttf.models.dpt import DPT

PLACES = ("taps", "reassembled")


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
        # reductions count the class token
        behind = short.new_zeros(len(short), PREFIX + short.shape[1], short.shape[2])
        behind[:, PREFIX:] = short
        return part.as_map(tokens._replace(x=behind).dense()[:, PREFIX:], grid)


class NarrowedDPT(CompressedDPT):
    """The same, where tokens come back behind the readout and the 1x1 convolution."""

    at_taps = False


class DPTHost(DenseHost):
    """A host whose head reads every patch at several blocks, so tokens come back even where the plan does not ask.

    Args:
        recover_at: "taps": tokens come back behind the tapped blocks, before anything is made of them.
            "reassembled": the readout and the 1x1 convolution, which go token by token, run on the transformed
            tokens, and their outputs come back. For copies of the nearest token (Eq. 9) that is the same at less cost;
            for reconstructions from several tokens it is not, as a GELU lies between.

    Raises:
        ValueError: another place.
    """

    kind = DPT
    container = "pretrained.model.blocks"
    places: tuple[str, ...] = PLACES

    def __init__(self, recover_at: str = "taps") -> None:
        self.recover_at = known_place(recover_at, PLACES)
        self.mixin = CompressedDPT if recover_at == "taps" else NarrowedDPT

    def blocks(self, model: Any) -> Sequence[nn.Module]:
        """See ``DenseHost.blocks``."""
        return model.vit.blocks

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
