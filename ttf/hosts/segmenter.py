"""Segmenter: its encoder is compressed, and dense again before its decoder or after it. Its blocks are timm's.

Shapes: B batch, N patch tokens, M transformed tokens, P prefix tokens, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ttf.core.compressed import CompressedAttention, CompressedBlock
from ttf.core.exchange import Exchanged
from ttf.core.host import Exit, Host
from ttf.core.plan import Place
from ttf.core.tokens import Tokens
from ttf.hosts.dense import PREFIX, DenseHost, known_place
from ttf.models.segmenter import Segmenter, as_map

PLACES = ("backbone", "masks")


class CompressedEncoder(Exchanged):
    """The encoder, whose tokens carry the grid of the images from the start."""

    ttf_place: Place

    def embed(self: Any, images: Tensor) -> Tokens:
        """As the model's own."""
        rows, columns = (side // self.patch for side in images.shape[-2:])
        recovery = self.ttf_place.plan.recovery
        return Tokens(super().embed(images), grid=(rows, columns), recovery=recovery)


class CompressedSegmenter(Exchanged):
    """The model, where the decoder runs on the short sequence and its mask logits come back."""

    ttf_place: Place

    def forward_features(self: Any, images: Tensor) -> Tensor:
        """As the model's own, (B, 1 + N, C): recovered tokens."""
        tokens = super().forward_features(images)
        return tokens if isinstance(tokens, Tensor) else self.encoder.norm(tokens.dense())

    def forward_masks(self: Any, images: Tensor) -> Tensor:
        """As the model's own, (B, K, rows, columns)."""
        tokens, grid = self.encoder(images), self.grid(images.shape[-2:])
        sizes = tokens.sizes if self.ttf_place.plan.method.scaling else None
        short = self._decode(self.encoder.norm(tokens.x), sizes)
        if tokens.chain:  # reductions count the class token
            behind = torch.cat((short.new_zeros(len(short), PREFIX, self.num_classes), short), dim=1)
            short = tokens._replace(x=behind).dense()[:, PREFIX:]
        return as_map(short, grid)

    def _decode(self: Any, tokens: Tensor, sizes: Tensor | None) -> Tensor:
        """Mask logits (B, M, K) of normed tokens (B, 1 + M, C), to which the decoder's attention adds log s (Eq. 7)."""
        decoder, x = self.decoder, self.decoder.embed(tokens[:, PREFIX:])
        if sizes is not None:
            sizes = torch.cat((sizes[:, PREFIX:], sizes.new_ones(len(sizes), self.num_classes)), dim=1)
        out = decoder.blocks(x if sizes is None else Tokens(x, sizes))
        return decoder.compare(out if isinstance(out, Tensor) else out.x)


class SegmenterHost(DenseHost):
    """A host whose head reads every patch, so that tokens come back even where the plan does not ask for it.

    Args:
        recover_at: "backbone": tokens come back at the end of the encoder, and the decoder runs on all of them.
            "masks": the decoder runs on the transformed tokens, and their mask logits come back (Hourglass's place).

    Raises:
        ValueError: another place.
    """

    kind = Segmenter
    container = "encoder.blocks"
    places: tuple[str, ...] = PLACES
    early = True

    def __init__(self, recover_at: str = "backbone") -> None:
        self.recover_at = known_place(recover_at, PLACES)
        if recover_at == "masks":
            self.mixin = CompressedSegmenter

    def blocks(self, model: Any) -> Sequence[nn.Module]:
        """See ``DenseHost.blocks``."""
        return [*model.encoder.blocks, *model.decoder.blocks]

    def exits(self, model: Any) -> tuple[Exit, ...]:
        """The encoder's norm, which the tokens pass on their way to the decoder where they stay short."""
        return (Exit("encoder.norm", "chain" if self.recover_at == "masks" else "short"),)

    def others(self, model: Any) -> list[tuple[nn.Module, type]]:
        """The encoder, and the blocks of the decoder where it runs on the short sequence."""
        if self.recover_at == "backbone":
            return [(model.encoder, CompressedEncoder)]
        inside = [part for b in model.decoder.blocks for part in ((b, CompressedBlock), (b.attn, CompressedAttention))]
        return [(model.encoder, CompressedEncoder), *inside]


def host(model: nn.Module) -> Host:
    """The host of a ``Segmenter``."""
    return SegmenterHost()
