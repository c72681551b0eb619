"""timm's Eva family, whose queries and keys are rotated by place: EVA-02, DINOv3, ViTs with rotary positions.

Shapes: B batch, N tokens, C channels, H heads, D head dimension, P prefix tokens, n patches of the grid.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import apply_rot_embed_cat
from timm.models import eva
from torch import Tensor, nn
from torch.nn import functional as F

from ttf.core.host import Call, Host
from ttf.hosts.timm_vit import TimmViT, check_blocks, check_exits, refuse_masks

BLOCKS = (eva.EvaBlock, eva.EvaBlockPostNorm)
ATTENTION = tuple(getattr(eva, name) for name in ("EvaAttention", "AttentionRope") if hasattr(eva, name))


def rotations(rope: Tensor, places: Tensor) -> Tensor:
    """The rotations of tokens by the places that they grew from.

    Args:
        rope: (n, 2 D), (H, n, 2 D) or (B, 1 or H, n, 2 D), sine and cosine of every place.
        places: (B, m) int64.

    Returns:
        (B, 1 or H, m, 2 D).
    """
    heads = rope if rope.ndim > 2 else rope.unsqueeze(0)
    each = heads.expand(places.shape[0], *heads.shape[-3:])
    index = places[:, None, :, None].expand(-1, each.shape[1], -1, each.shape[3])
    return each.gather(2, index)


def _rotated(attn: Any, x: Tensor, rope: Tensor) -> Tensor:
    """Queries or keys (B, H, N, D), those behind the prefix rotated."""
    prefix, half = attn.num_prefix_tokens, {"half": True} if getattr(attn, "rotate_half", False) else {}
    return torch.cat((x[:, :, :prefix], apply_rot_embed_cat(x[:, :, prefix:], rope, **half)), dim=2)


def _heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


def _projected(attn: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, (B, H, N, D) each; keys and values may have fewer heads."""
    if attn.qkv is None:
        few = getattr(attn, "num_kv_heads", attn.num_heads)
        return _heads(attn.q_proj(x), attn.num_heads), _heads(attn.k_proj(x), few), _heads(attn.v_proj(x), few)
    bias = None if getattr(attn, "q_bias", None) is None else torch.cat((attn.q_bias, attn.k_bias, attn.v_bias))
    if bias is None:
        qkv = attn.qkv(x)
    else:
        qkv = attn.qkv(x) + bias if attn.qkv_bias_separate else F.linear(x, attn.qkv.weight, bias)
    q, k, v = qkv.unflatten(2, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v


def _qkv(attn: Any, x: Tensor, rope: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = _projected(attn, x)
    q, k = attn.q_norm(q), attn.k_norm(k)
    if rope is not None:
        q, k = (_rotated(attn, part, rope).type_as(v) for part in (q, k))
    groups = attn.num_heads // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    return q, k, v


class TimmEva(TimmViT):
    """timm's ``Eva`` and its subclasses.

    Args:
        rotary: whether the model rotates; some of the family have a position table alone.
    """

    positional = ("rope", "attn_mask", "is_causal")
    merges_inside = pools_maps = False
    norms_last = (eva.EvaBlockPostNorm,)

    def __init__(self, rotary: bool) -> None:
        self.rotary = rotary

    def check(self, model: Any) -> None:
        """Raise ``ValueError`` for a model whose parts are not among those known here."""
        check_blocks(model, model.blocks, BLOCKS, ATTENTION)
        check_exits(model)

    def arguments(self, call: Call, places: Tensor | None) -> Call:
        """The rotations, those of the tokens' places where these are not their own."""
        refuse_masks(call)
        rope = call.get("rope")
        if rope is None:
            return {}
        return {"rope": rope if places is None else rotations(rope, places)}

    def heads(self, attention: Any, x: Tensor, call: Call) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, (B, H, N, D) each; queries and keys are rotated."""
        return _qkv(attention, x, call.get("rope"))

    def scaled(self, block: Any, branch: int, out: Tensor) -> Tensor:
        """gamma times the output, where the block has one."""
        gamma = block.gamma_1 if branch == 1 else block.gamma_2
        return out if gamma is None else gamma * out


def host(model: nn.Module) -> Host:
    """The host of a timm ``Eva``."""
    return TimmEva(getattr(model, "rope", None) is not None)
