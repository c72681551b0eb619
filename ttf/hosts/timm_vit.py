"""timm's Vision Transformers: ViT, DeiT (distilled too), AugReg, DINOv2, SigLIP, MAE fine-tuned, DeiT-III and so on.

Shapes: B batch, N tokens, C channels, H heads, D head dimension, P prefix tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from timm.layers import Attention, AttentionPoolLatent
from timm.models import vision_transformer as vit
from torch import Tensor, nn

from ttf.hosts import Branch, Host
from ttf.methods.base import LayerView
from ttf.ops.attention import (
    Wanted,
    class_row,
    column_sums,
    fused_attention,
    mapped_attention,
    side_by_side,
    size_bias,
    summed_attention,
)
from ttf.schedule import thirds
from ttf.stack import CompressedStack, State, shallow_twin

BLOCKS = (vit.Block, vit.ResPostBlock)


def _qkv(attn: Attention, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of a timm attention layer, (B, H, N, D) each."""
    batch, tokens, _ = x.shape
    q, k, v = attn.qkv(x).reshape(batch, tokens, 3, attn.num_heads, attn.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
    return attn.q_norm(q), attn.k_norm(k), v


def _project(attn: Attention, x: Tensor, heads: Tensor) -> Tensor:
    """What a timm attention layer does after its softmax: heads (B, H, N, D) to (B, N, C)."""
    out = side_by_side(heads)
    out = attn.norm(out) if hasattr(attn, "norm") else out
    gate = getattr(attn, "gate", None)
    out = out if gate is None else out * gate(x).sigmoid()
    return attn.proj_drop(attn.proj(out))


def _attention(attn: Any, x: Tensor, sizes: Tensor | None, wanted: Wanted, prefix: int) -> LayerView:
    """The attention branch, without its residual, as the tokens of a view."""
    q, k, v = _qkv(attn, x)
    bias, dropout = size_bias(sizes, q.dtype), attn.attn_drop.p if attn.training else 0.0
    scores = attention = None
    if wanted.attention:
        heads, attention = mapped_attention(q, k, v, bias, attn.scale, dropout)
        scores = column_sums(attention, wanted.score_rows, prefix) if wanted.score_rows else None
    elif wanted.score_rows in ("all", "patch"):
        heads, scores = summed_attention(q, k, v, bias, attn.scale, dropout, wanted.score_rows, prefix)
    else:
        heads = fused_attention(q, k, v, bias, attn.scale, dropout)
        scores = class_row(q, k, bias, attn.scale) if wanted.score_rows == "class" else None
    return LayerView(
        _project(attn, x, heads), prefix, scores=scores,
        keys=k.mean(dim=1) if wanted.keys else None,
        attention=attention if wanted.attention else None,
        value_norms=side_by_side(v).float().norm(dim=-1) if wanted.value_norms else None,
        class_query=side_by_side(q)[:, 0] if wanted.projections else None,
        flat_keys=side_by_side(k) if wanted.projections else None,
    )  # fmt: skip


def _attend(block: Any, x: Tensor, sizes: Tensor | None, wanted: Wanted, prefix: int) -> LayerView:
    if isinstance(block, vit.ResPostBlock):
        branch = _attention(block.attn, x, sizes, wanted, prefix)
        out = block.norm1(branch.x)
    else:
        branch = _attention(block.attn, block.norm1(x), sizes, wanted, prefix)
        out = block.ls1(branch.x)
    x = x + block.drop_path1(out)
    return replace(branch, x=x, normed=block.norm2(x) if wanted.normed else None)


def _feed_forward(block: Any, x: Tensor) -> Tensor:
    if isinstance(block, vit.ResPostBlock):
        return x + block.drop_path2(block.norm2(block.mlp(x)))
    return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))


def _branches(block: Any) -> tuple[Branch, Branch]:
    if isinstance(block, vit.ResPostBlock):
        return (
            (nn.Identity(), lambda x: block.drop_path1(block.norm1(block.attn(x)))),
            (nn.Identity(), lambda x: block.drop_path2(block.norm2(block.mlp(x)))),
        )
    return (
        (block.norm1, lambda x: block.drop_path1(block.ls1(block.attn(x)))),
        (block.norm2, lambda x: block.drop_path2(block.ls2(block.mlp(x)))),
    )


class _Replay:
    """Stands in for ``model.blocks`` during one dense forward: hands out recovered tokens, block by block."""

    def __init__(self, outputs: list[Tensor]) -> None:
        self.outputs = outputs

    def __iter__(self):
        return (lambda x, out=out: out for out in self.outputs)

    def __len__(self) -> int:
        return len(self.outputs)

    def __getitem__(self, chosen: slice) -> _Replay:
        return _Replay(self.outputs[chosen])


def _embed(model: Any, x: Tensor) -> Tensor:
    return model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(x))))


def _run(model: Any, x: Tensor) -> State:
    checkpointed = model.grad_checkpointing and model.training
    return model.blocks.run(_embed(model, x), checkpointed=checkpointed, grid=_grid(model, x.shape[-2:]))


def _refuse_masks(attn_mask: Tensor | None, is_causal: bool) -> None:
    if attn_mask is not None or is_causal:
        raise ValueError("a compressed model takes no attention mask: its tokens are no longer those of the mask")


def _forward_features(self: Any, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
    """Tokens (B, M, C) after the last norm, (B, N, C) where the plan recovers.

    In a model that pools by the plain mean, tokens carry their weight s_i / mean(s) already, so that timm's own mean
    over them is the size-weighted mean.
    """
    _refuse_masks(attn_mask, is_causal)
    state = _run(self, x)
    if self.blocks.plan.recovery:
        return self.norm(state.dense())
    tokens = self.norm(state.x)
    if state.sizes is None or self.attn_pool is not None or self.global_pool != "avg":
        return tokens
    return tokens * _mean_weights(self, state.sizes).to(tokens.dtype)


def _forward(self: Any, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
    """As the model's own; an attention pool sees the sizes as log s."""
    if not isinstance(self.attn_pool, AttentionPoolLatent) or self.blocks.plan.recovery:
        return self.forward_head(self.forward_features(x, attn_mask, is_causal))
    _refuse_masks(attn_mask, is_causal)
    state = _run(self, x)
    first = _first_pooled(self)
    sizes = None if state.sizes is None else state.sizes[:, first:]
    tokens = self.norm(state.x)[:, first:]
    pooled = self.attn_pool(tokens, attn_mask=size_bias(sizes, tokens.dtype))
    return self.head(self.head_drop(self.fc_norm(pooled)))


def _forward_intermediates(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """timm's own, every tap recovered to the grid of the image (Eq. 10)."""
    _refuse_masks(kwargs.get("attn_mask"), kwargs.get("is_causal", False))
    outputs: list[Tensor] = []
    recovery = self.blocks.plan.recovery or "nearest"
    self.blocks.run(
        _embed(self, x), recovery=recovery, grid=_grid(self, x.shape[-2:]),
        after=lambda _, state: outputs.append(state.dense()),
    )  # fmt: skip
    shadow = shallow_twin(self)
    del shadow._modules["blocks"]
    shadow.__dict__["blocks"] = _Replay(outputs)
    return vit.VisionTransformer.forward_intermediates(shadow, x, *args, **kwargs)


OVERLAYS = {
    "forward_features": _forward_features,
    "forward": _forward,
    "forward_intermediates": _forward_intermediates,
}


class CompressedViT:
    """Mixed into the class of a compressed model, with those of ``OVERLAYS`` that its own class inherits from timm.

    They do what the stack cannot do alone: sizes that weight the average pool, attention pools that see sizes,
    gradient checkpointing, and dense tokens at the taps of ``forward_intermediates``.
    """

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _blank, (_own_class(self),), self.__getstate__()


def _first_pooled(model: Any) -> int:
    """The first token that the model's pool sees."""
    return 0 if getattr(model, "pool_include_prefix", False) else model.num_prefix_tokens


def _mean_weights(model: Any, sizes: Tensor) -> Tensor:
    """s_i / mean(s) over the pooled tokens, (B, M, 1); 1 for tokens that are not pooled."""
    first = _first_pooled(model)
    pooled = sizes[:, first:]
    weights = pooled / pooled.mean(dim=1, keepdim=True)
    return torch.cat((torch.ones_like(sizes[:, :first]), weights), dim=1).unsqueeze(-1)


@cache
def _compressed_class(own: Any) -> Any:
    inherited = [name for name in OVERLAYS if getattr(own, name) is getattr(vit.VisionTransformer, name)]
    if "forward_features" not in inherited:  # a forward of its own: the stack alone compresses it
        inherited = []
    overlays = {name: OVERLAYS[name] for name in inherited}
    return type(f"Compressed{own.__name__}", (CompressedViT, own), {"__module__": __name__, **overlays})


def _own_class(model: Any) -> Any:
    return type(model).__mro__[2]


def _blank(own: Any) -> nn.Module:
    return object.__new__(_compressed_class(own))


def _enter(model: nn.Module) -> None:
    if not isinstance(model, CompressedViT):
        own: Any = type(model)
        model.__class__ = _compressed_class(own)


def _leave(model: nn.Module) -> None:
    if isinstance(model, CompressedViT):
        model.__class__ = _own_class(model)


def _grid(model: Any, size: Sequence[int]) -> tuple[int, int]:
    return model.patch_embed.dynamic_feat_size(tuple(size))


def _check(model: Any) -> None:
    """Raise ``ValueError`` for a Vision Transformer whose parts are not among those known here."""
    name = type(model).__name__
    if type(model.blocks) is not nn.Sequential and not isinstance(model.blocks, CompressedStack):
        raise ValueError(f"{name}.blocks is no nn.Sequential: ttf cannot enter it")
    for block in model.blocks:
        if type(block) not in BLOCKS or type(block.attn) is not Attention:
            known = ", ".join(b.__name__ for b in BLOCKS)
            kind = f"{type(block).__name__} with {type(getattr(block, 'attn', None)).__name__}"
            raise ValueError(f"{name} is built of {kind}. Supported are timm's blocks {known} with Attention")
    if isinstance(model.attn_pool, AttentionPoolLatent) and model.attn_pool.pos_embed is not None:
        raise ValueError(f"{name} pools with position embeddings, which a shorter sequence no longer has")


def _prefix(model: Any) -> int:
    return model.num_prefix_tokens


def _reads_class_token(model: Any) -> bool:
    return model.num_prefix_tokens > 0 and model.global_pool == "token" and model.attn_pool is None


TIMM_VIT = Host(
    attend=_attend,
    feed_forward=_feed_forward,
    branches=_branches,
    prefix=_prefix,
    blocks=thirds,
    reads_class_token=_reads_class_token,
    grid=_grid,
    enter=_enter,
    leave=_leave,
)


def host(model: nn.Module) -> Host:
    """The host of a timm ``VisionTransformer``. Raises ``ValueError`` for variants with other blocks."""
    _check(model)
    return TIMM_VIT
