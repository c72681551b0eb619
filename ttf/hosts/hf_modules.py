"""The classes of a compressed encoder of transformers: of itself, of its embeddings, and of SigLIP's pool.

Shapes: B batch, N tokens, C channels.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ttf.core.compressed import leave
from ttf.core.exchange import Exchanged
from ttf.core.host import Exit
from ttf.core.plan import Place
from ttf.core.tokens import Tokens
from ttf.ops.attention import size_bias


class CompressedTower(Exchanged):
    """An encoder whose outputs hold tensors again: short tokens, or dense ones where they are asked for."""

    ttf_place: Place
    ttf_exit: Exit

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        names = self.ttf_place.plan.host.arguments_of_encoder
        told = {**dict(zip(names, args[1:], strict=False)), **kwargs}.get("output_attentions")
        if told or (told is None and getattr(self.config, "output_attentions", False)):
            raise ValueError("a compressed encoder has no attention maps of all tokens: leave output_attentions out")
        out = super().forward(*args, **kwargs)
        if isinstance(out, tuple):
            return tuple(self._tensors(value) for value in out)
        for name, value in out.items():
            out[name] = self._tensors(value)
        return out

    def _tensors(self, value: Any) -> Any:
        if isinstance(value, Tokens):
            plan = self.ttf_place.plan
            return value.dense() if value.recovery is not None else leave(value, self.ttf_exit, plan)
        if isinstance(value, tuple | list):  # hidden states: of the layers, so without weights
            return tuple(v if not isinstance(v, Tokens) else v[0] for v in value)
        return value


class CompressedEmbeddings(Exchanged):
    """Embeddings that say on which grid the patches lie of images that are not as large as the configuration says."""

    ttf_place: Place

    def forward(self: Any, pixel_values: Tensor, *args: Any, **kwargs: Any) -> Any:
        embedded, plan = super().forward(pixel_values, *args, **kwargs), self.ttf_place.plan
        height, width = pixel_values.shape[-2:]
        grid = plan.host.grid(self, (height, width))
        return embedded if grid == plan.grid else Tokens(embedded, grid=grid, recovery=plan.recovery)


class CompressedPooling(Exchanged):
    """SigLIP's attention pool (``nn.MultiheadAttention``), which sees the sizes as log s (Eq. 7)."""

    def forward(self: Any, query: Tensor, key: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(key, Tensor):
            return super().forward(query, key, value, *args, **kwargs)
        bias = size_bias(key.sizes, key.x.dtype)
        mask = None if bias is None else bias[:, 0].repeat_interleave(self.num_heads, dim=0)
        mask = None if mask is None else mask.expand(-1, query.shape[1], -1)
        return super().forward(query, key.x, value.x, *args, attn_mask=mask, **kwargs)
