"""timm's Vision Transformers: ViT, DeiT (distilled too), AugReg, DINOv2, SigLIP, MAE fine-tuned, DeiT-III and so on.

Shapes: B batch, N tokens, C channels, H heads, D head dimension, P prefix tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from timm.layers import Attention, AttentionPoolLatent
from timm.models import vision_transformer as vit
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from ttf.core.attention import attended_heads, pooled_heads
from ttf.core.compressed import PassThrough
from ttf.core.entry import enter_exits, twin
from ttf.core.exchange import Exchanged, own_class
from ttf.core.host import NO_MASKS, Attended, Branch, Call, Exit, Host, Leave, Request, ask
from ttf.core.plan import Place
from ttf.core.tokens import Tokens, as_tokens
from ttf.methods.base import LayerView
from ttf.ops.attention import side_by_side, size_bias
from ttf.ops.reduction import Reduction

BLOCKS = (vit.Block, vit.ResPostBlock)
TIMM = ("timm.", "ttf.")
POOLS: dict[str, Leave] = {"avg": "mean", "max": "max", "avgmax": "tokens"}  # others read single tokens, or all


def _qkv(attn: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of a timm attention layer, (B, H, N, D) each."""
    batch, tokens, _ = x.shape
    q, k, v = attn.qkv(x).reshape(batch, tokens, 3, attn.num_heads, attn.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
    return attn.q_norm(q), attn.k_norm(k), v


def _rows(linear: Any, x: Tensor, rows: slice) -> Tensor:
    """Some outputs of a linear layer, without computing the others where it is nothing but that."""
    if type(linear) is nn.Linear and not linear._forward_hooks and not linear._forward_pre_hooks:
        return F.linear(x, linear.weight[rows], None if linear.bias is None else linear.bias[rows])
    return linear(x)[..., rows]


def project(attn: Any, x: Tensor, out: Tensor) -> Tensor:
    """What a timm attention layer with input x does after its softmax: heads (B, N, H * D) to (B, N, C)."""
    out = attn.norm(out) if hasattr(attn, "norm") else out
    gate = getattr(attn, "gate", None)
    out = out if gate is None else out * gate(x).sigmoid()
    return attn.proj_drop(attn.proj(out))


def refuse_masks(call: Call) -> None:
    """Raise ``ValueError`` where a block is called with a mask of its tokens."""
    if call.get("attn_mask") is not None or call.get("is_causal"):
        raise ValueError(NO_MASKS)


class TimmBlocks(Host):
    """Hosts that are built of timm's ``Block`` or ``ResPostBlock``."""

    positional: tuple[str, ...] = ("attn_mask", "is_causal")
    merges_inside = True
    pools_maps = True
    norms_last: Any = (vit.ResPostBlock,)

    def heads(self, attention: Any, x: Tensor, call: Call) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, (B, H, N, D) each."""
        return _qkv(attention, x)

    def scaled(self, block: Any, branch: int, out: Tensor) -> Tensor:
        """What layer scale makes of the output of branch 1 or 2 of a block with its norms in front."""
        return (block.ls1 if branch == 1 else block.ls2)(out)

    def arguments(self, call: Call, places: Tensor | None) -> Call:
        """None: without masks, a block has no arguments."""
        refuse_masks(call)
        return {}

    def attended(self, attention: Any, x: Tensor, request: Request, call: Call) -> Attended:
        """See ``Host.attended``; by ``heads``."""
        dropout = attention.attn_drop.p if attention.training else 0.0
        if request.enter is not None:
            return self._pooled(attention, x, request, dropout)
        return attended_heads(
            *self.heads(attention, x, call), attention.scale, request, lambda out: project(attention, x, out), dropout
        )

    def _pooled(self, attention: Any, x: Tensor, request: Request, dropout: float) -> Attended:
        """``attended`` where tokens are reduced at the entrance: queries and keys of x, values of the new tokens."""
        inner = attention.num_heads * attention.head_dim
        q, k = (
            _rows(attention.qkv, x, slice(0, 2 * inner))
            .unflatten(2, (2, attention.num_heads, -1))
            .permute(2, 0, 3, 1, 4)
        )

        def values(y: Tensor) -> Tensor:
            v = _rows(attention.qkv, y, slice(2 * inner, 3 * inner))
            return v.unflatten(2, (attention.num_heads, -1)).transpose(1, 2)

        def after(y: Tensor, out: Tensor) -> Tensor:
            return project(attention, y, out)

        q, k = attention.q_norm(q), attention.k_norm(k)
        return pooled_heads(q, k, values, attention.scale, request, after, dropout)

    def enter(
        self,
        block: Any,
        x: Tensor,
        request: Request,
        call: Call,
        reduce: Callable[[Attended], tuple[Tensor, Reduction]],
    ) -> Tensor:
        """See ``Host.enter``."""
        last = isinstance(block, self.norms_last)
        found: list[Tensor] = []

        def seen(x: Tensor) -> Tensor:
            return x if last else block.norm1(x)

        def inside(statistics: Attended) -> tuple[Tensor, Reduction]:
            y, reduction = reduce(statistics)
            found.append(y)
            return seen(y), reduction

        out = ask(block.attn, seen(x), request._replace(enter=inside), call).x
        return found[0] + block.drop_path1(block.norm1(out) if last else self.scaled(block, 1, out))

    def attend(self, block: Any, x: Tensor, request: Request, call: Call) -> LayerView:
        """x + scaled(attn(norm1(x))), or x + norm1(attn(x)) where norms come last."""
        if isinstance(block, self.norms_last):
            attended = ask(block.attn, x, request, call)
            out = block.norm1(attended.x)
        else:
            attended = ask(block.attn, block.norm1(x), request, call)
            out = self.scaled(block, 1, attended.x)
        x = x + block.drop_path1(out)
        return attended.view(x, request.prefix, block.norm2(x) if request.wanted.normed else None)

    def feed_forward(self, block: Any, x: Tensor) -> Tensor:
        """x + scaled(mlp(norm2(x))), or x + norm2(mlp(x))."""
        if isinstance(block, self.norms_last):
            return x + block.drop_path2(block.norm2(block.mlp(x)))
        return x + block.drop_path2(self.scaled(block, 2, block.mlp(block.norm2(x))))

    def branches(self, block: Any, call: Call) -> tuple[Branch, Branch]:
        """Attention and feed-forward without their residuals."""
        if isinstance(block, vit.ResPostBlock):
            return (
                (nn.Identity(), lambda x: block.drop_path1(block.norm1(block.attn(x)))),
                (nn.Identity(), lambda x: block.drop_path2(block.norm2(block.mlp(x)))),
            )
        return (
            (block.norm1, lambda x: block.drop_path1(block.ls1(block.attn(x)))),
            (block.norm2, lambda x: block.drop_path2(block.ls2(block.mlp(x)))),
        )


def check_blocks(model: Any, blocks: Any, kinds: tuple[type, ...], attentions: tuple[type, ...]) -> None:
    """Raise ``ValueError`` unless all blocks and their attention layers are of the given classes."""
    for block in blocks:
        inner = getattr(block, "attn", None)
        if own_class(block) not in kinds or inner is None or own_class(inner) not in attentions:
            known = ", ".join(kind.__name__ for kind in kinds)
            with_ = "" if inner is None else f" with {own_class(inner).__name__}"
            raise ValueError(
                f"{type(model).__name__} is built of {own_class(block).__name__}{with_}. "
                f"Supported are timm's blocks {known} with {attentions[0].__name__}"
            )


class CompressedPool(Exchanged):
    """timm's attention pools over ``Tokens``: they see the sizes as log s (Eq. 7)."""

    ttf_place: Place

    def forward(self: Any, x: Any, *args: Any, **kwargs: Any) -> Tensor:
        if isinstance(x, Tensor):
            return super().forward(x, *args, **kwargs)
        tokens = as_tokens(x, type(self).__name__)
        bias = size_bias(tokens.sizes, tokens.x.dtype)
        if isinstance(self, AttentionPoolLatent):
            return super().forward(tokens.x, attn_mask=bias)
        return _refined(self, tokens, bias)


def _refined(pool: Any, tokens: Tokens, bias: Tensor | None) -> Tensor:
    """``AttentionPoolPrr`` with sizes: attention of the tokens to themselves, then the first one or the mean."""
    heads = pool.pre_norm(tokens.x).unflatten(2, (pool.num_heads, pool.head_dim)).transpose(1, 2)
    out = pool.post_norm(side_by_side(F.scaled_dot_product_attention(heads, heads, heads, attn_mask=bias)))
    return out[:, 0] if pool.pool == "token" else tokens._replace(x=out).mean(1) if pool.pool == "avg" else out


class CompressedViT(Exchanged):
    """What blocks and exits cannot do: dense taps, the grid of images of any size, a pool that is changed."""

    ttf_place: Place

    def forward_intermediates(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """timm's own, every tap recovered to the grid of the image (Eq. 10)."""
        recovered = self.ttf_place.plan.recovery
        dense: Any = self if recovered else twin(self, lambda plan: replace(plan, recovery="nearest"))
        out = super(CompressedViT, dense).forward_intermediates(x, *args, **kwargs)
        return tree_map(lambda y: y.dense() if isinstance(y, Tokens) else y, out, is_leaf=_is_tokens)

    def _pos_embed(self: Any, x: Tensor) -> Any:
        grid = (x.shape[1], x.shape[2]) if x.ndim == 4 else None  # of images of any size: (B, rows, columns, C)
        embedded, recovery = super()._pos_embed(x), self.ttf_place.plan.recovery
        if grid is None:
            return embedded
        if isinstance(embedded, Tensor):
            return Tokens(embedded, grid=grid, recovery=recovery)
        return Tokens(embedded[0], grid=grid, recovery=recovery), *embedded[1:]

    def pool(self: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        """timm's own; a compiler of torch 2.10 takes ``Tokens`` that are sliced there for a plain tuple."""
        if isinstance(x, Tokens) and self.attn_pool is not None and not getattr(self, "pool_include_prefix", False):
            return self.attn_pool(x.behind(self.num_prefix_tokens))
        return super().pool(x, *args, **kwargs)

    def reset_classifier(self: Any, *args: Any, **kwargs: Any) -> None:
        """timm's own; the exits follow the new pool."""
        super().reset_classifier(*args, **kwargs)
        enter_exits(self, self.ttf_place)


def _is_tokens(value: Any) -> bool:
    return isinstance(value, Tokens)


class TimmViT(TimmBlocks):
    """timm's ``VisionTransformer`` and its subclasses."""

    mixin = CompressedViT

    def check(self, model: Any) -> None:
        """Raise ``ValueError`` for a Vision Transformer whose parts are not among those known here."""
        name = type(model).__name__
        if not isinstance(model.blocks, nn.Sequential | nn.ModuleList):
            raise ValueError(f"{name}.blocks is no nn.Sequential and no nn.ModuleList: ttf cannot enter it")
        check_blocks(model, model.blocks, BLOCKS, (Attention,))
        check_exits(model)

    def class_token(self, model: Any) -> bool:
        """Whether there is one: registers alone are none."""
        return model.cls_token is not None

    def reads_class_token(self, model: Any) -> bool:
        """Whether the model pools by the class token (and distillation token) alone."""
        return self.class_token(model) and model.global_pool == "token" and model.attn_pool is None

    def grid(self, model: Any, size: tuple[int, int]) -> tuple[int, int]:
        """See ``Host.grid``."""
        return model.patch_embed.dynamic_feat_size(tuple(size))

    def input_size(self, model: Any) -> tuple[int, int] | None:
        """Of the position table."""
        return model.patch_embed.img_size

    def exits(self, model: Any) -> tuple[Exit, ...]:
        """The last norm, and an attention pool, which sees the sizes."""
        if model.attn_pool is not None:
            return (Exit("norm", "tokens"), Exit("attn_pool"))
        first = 0 if getattr(model, "pool_include_prefix", False) else model.num_prefix_tokens
        return (Exit("norm", POOLS.get(model.global_pool, "short"), first),)

    def exit_class(self, path: str) -> type | None:
        """Attention pools take ``Tokens`` as they are."""
        return CompressedPool if path == "attn_pool" else None

    def others(self, model: Any) -> list[tuple[nn.Module, type]]:
        """What lies between embedding and blocks of a model that takes images of any size."""
        between = (getattr(model, "patch_drop", None), getattr(model, "norm_pre", None))
        if not getattr(model, "dynamic_img_size", False):
            return []
        return [(module, PassThrough) for module in between if module is not None]

    def knows_forward(self, model: Any) -> bool:
        """Whether timm's own forward runs."""
        own = own_class(model)
        return all(getattr(own, name).__module__.startswith(TIMM) for name in ("forward", "forward_features"))


def check_exits(model: Any) -> None:
    """Raise ``ValueError`` for a model that has no last norm, or whose pool cannot take a short sequence."""
    name = type(model).__name__
    if not isinstance(getattr(model, "norm", None), nn.Module):
        raise ValueError(
            f"{name} has no module `norm` behind its blocks, where ttf's tokens leave: ttf cannot enter it"
        )
    if isinstance(model.attn_pool, AttentionPoolLatent) and model.attn_pool.pos_embed is not None:
        raise ValueError(f"{name} pools with position embeddings, which a shorter sequence no longer has")


def host(model: nn.Module) -> Host:
    """The host of a timm ``VisionTransformer``."""
    return TimmViT()
