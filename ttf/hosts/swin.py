"""Swin: tokens are compressed inside of the windows of one stage, and are back on the map before the next one.

The operator sees windows as its batch. A token keeps the place of the informative token that it grew from, so later
blocks, shifted or not, find its window, its bias and its mask at that place ("places"); or what is left of a window is
put together as a smaller one ("grid", Hourglass's way). Serves ``ttf.models.swin`` and mmdet's ``SwinTransformer``.
Shapes: B batch, H, W of the map, L tokens that are left of an image, w side of a window, nW windows, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ttf.core.host import Attended, Call, Exit, Host, Request, ask
from ttf.core.plan import Plan
from ttf.core.tokens import Tokens
from ttf.hosts.windowed import CompressedSwinBlock
from ttf.methods.base import LayerView, Method
from ttf.ops.attention import column_sums, fused_attention, mapped_attention, side_by_side
from ttf.ops.reduction import Recovery
from ttf.ops.window_map import Kind, Map, Size
from ttf.ops.windows import Cut, Layout, layout, resized_table

STAGE = 2  # of four, from 0 on: most of the blocks
CHOICES = {"windows": ("places", "grid"), "shift": ("kept", "none"), "reduce_after": ("attention", "block")}


def _side(kept: int) -> int:
    """Side of the square of about so many tokens."""
    return max(1, round(kept**0.5))


class SwinHost(Host):
    """The blocks of stage 3, numbered as blocks of the whole network.

    Args:
        stages: path of the list of stages. blocks: of the stages in front.
        windows: "places" or "grid". shift: "kept", or "none": windows stay apart once tokens were reduced.
        reduce_after: "attention" (of a block; the rest of it runs on what is left), or the whole "block".

    Raises:
        ValueError: another choice.
    """

    choices: Mapping[str, tuple[str, ...]] = CHOICES
    recovery: Recovery | None = "nearest"
    block_mixin: type | None = CompressedSwinBlock
    positional: tuple[str, ...] = ("size",)

    def __init__(self, stages: str, first: int, **options: str) -> None:
        self.stages, self.first, self.container = stages, first, f"{stages}.{STAGE}.blocks"
        self.options = {name: options.get(name, known[0]) for name, known in CHOICES.items()}
        for name, value in self.options.items():
            if value not in CHOICES[name]:
                raise ValueError(f"{name} must be one of {', '.join(CHOICES[name])}, got {value!r}")

    def chosen(self, **options: str) -> Host:
        """See ``Host.chosen``."""
        return type(self)(self.stages, self.first, **options)

    # facts of a model

    def check_method(self, method: Method) -> None:
        """Raise ``ValueError`` for a method that windows cannot be compressed with."""
        name, wanted = type(method).__name__, method.wanted
        if method.around or method.adaptive or wanted.attention or wanted.projections:
            raise ValueError(f"{name} cannot work inside of windows: it needs the whole map, or counts differ by image")
        if self.options["windows"] == "places" and not method.names_tokens:
            raise ValueError(f"{name} makes tokens that have no place in the map: set windows=grid")

    def prefix(self, model: Any) -> int:
        """None: Swin has patch tokens alone."""
        return 0

    def default_blocks(self, depth: int) -> tuple[int, ...]:
        """The first block of the stage."""
        return (self.first,)

    def grid(self, model: Any, size: Size) -> Size:
        """The map of the stage."""
        for factor in (4, *[2] * STAGE):
            size = (-(-size[0] // factor), -(-size[1] // factor))
        return size

    def exits(self, model: Any) -> tuple[Exit, ...]:
        """The merging behind the stage, and the norm of its map."""
        behind = [f"{self.stages}.{STAGE}.downsample", *self._norms(model)]
        return tuple(Exit(path) for path in behind if has(model, path))

    def _norms(self, model: Any) -> list[str]:
        base = self.stages.rpartition(".")[0]
        return [f"{base}.norm{STAGE}".lstrip(".")]

    # how many tokens

    def counts(self, plan: Plan, at: Map, kinds: list[Kind], side: int, block: int) -> tuple[list[int], int]:
        """Tokens that are left in each kind of windows, and the side of a window of them."""
        if self.options["windows"] == "places":
            keep = plan.schedule.kept(block, max(kind.tokens for kind in kinds))
            return [min(keep, kind.tokens) for kind in kinds], side
        new = min(side, _side(plan.schedule.kept(block, side * side)))
        if new == side:
            return [kind.tokens for kind in kinds], side
        return [rows * columns for rows, columns in (at.kept_grid(kind, new) for kind in kinds)], new

    # parts of a block

    def window(self, block: Any) -> int:
        """Side of its windows."""
        return int(block.window_size)

    def shift(self, block: Any) -> int:
        """By how much they are shifted."""
        return int(block.shift_size)

    def attended_block(self, block: Any, tokens: Tokens, request: Request, at: Map, side: int) -> LayerView:
        """The first half of a block: tokens (B, L, C) after the attention residual. ``side``: of the windows now."""
        shift = self.shift(block) and side // 2
        reduced = tokens.sizes is not None
        if reduced and self.options["shift"] == "none":
            shift = 0
        size, filling = at.filling(side, tokens.x)
        places = tokens.places
        columns = size[1] if tokens.grid else at.size[1]
        if places is None:
            places = torch.arange(at.size[0] * at.size[1], device=tokens.x.device).expand(len(tokens.x), -1)
        if columns != size[1]:  # numbers on the map that is filled up
            places = places // columns * size[1] + places % columns
        where = layout(places, filling, size[1], Cut(size, side, shift))
        return self.attend(block, tokens.x, request, {"where": where, "window": at.window})

    def attend(self, block: Any, x: Tensor, request: Request, call: Call) -> LayerView:
        """See ``Host.attend``."""
        attended = ask(self.attentions(block)[0], block.norm1(x), request, call)
        x = x + self.dropped(block, attended.x)
        return attended.view(x, 0, block.norm2(x) if request.wanted.normed else None)

    def dropped(self, block: Any, out: Tensor) -> Tensor:
        """Stochastic depth."""
        return block.drop_path(out)

    def feed_forward(self, block: Any, x: Tensor) -> Tensor:
        """See ``Host.feed_forward``."""
        return x + block.drop_path(block.mlp(block.norm2(x)))

    def attended(self, attention: Any, x: Tensor, request: Request, call: Call) -> Attended:
        """Attention among the tokens x (B, L, C) of each window of ``call["where"]``."""
        where: Layout = call["where"]
        table = resized_table(attention.relative_position_bias_table, call["window"], where.window)
        heads = attention.num_heads
        own = attention.qkv(x)
        bias = attention.qkv.bias if attention.qkv.bias is not None else own.new_zeros(own.shape[2])
        more = where.slot.shape[1] - x.shape[1]  # what fills up is zero, and its keys and values are their bias
        every = torch.cat((own, bias.to(own.dtype).expand(len(x), more, -1)), dim=1)
        q, k, v = where.sorted(every).unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        sizes = request.sizes
        if sizes is not None:
            sizes = torch.cat((sizes, sizes.new_ones(len(x), more)), dim=1)
        added = where.bias(table).to(q.dtype) + where.size_bias(sizes, q.dtype)
        dropout = attention.attn_drop.p if attention.training else 0.0
        scores = None
        if request.wanted.score_rows:
            out, attended = mapped_attention(q, k, v, added, attention.scale, dropout)
            real = where.real.flatten(0, 1)[:, None, :, None]
            scores = where.back(column_sums(attended.masked_fill(~real, 0.0)), x.shape[1])
        else:
            out = fused_attention(q, k, v, added, attention.scale, dropout)
        values = own.unflatten(2, (3, heads, -1))
        return Attended(
            attention.proj_drop(attention.proj(where.back(side_by_side(out), x.shape[1]))), scores,
            keys=values[:, :, 1].mean(dim=2) if request.wanted.keys else None,
            value_norms=values[:, :, 2].flatten(2).float().norm(dim=-1) if request.wanted.value_norms else None,
        )  # fmt: skip


def has(model: nn.Module, path: str) -> bool:
    """Whether a model has a module at a path."""
    try:
        return isinstance(model.get_submodule(path), nn.Module)
    except AttributeError:
        return False


def enter_at(kind: type[SwinHost], model: nn.Module, backbone: str, stages: str) -> Host:
    """The host of a model whose stages are at ``backbone`` + ``stages``."""
    layers: Any = model.get_submodule(f"{backbone}{stages}")
    return kind(f"{backbone}{stages}", sum(len(stage.blocks) for stage in list(layers)[:STAGE]))


def host(model: nn.Module) -> Host:
    """The host of a ``SwinTransformer`` of this project, or of a ``SwinDet`` on one."""
    return enter_at(SwinHost, model, "" if hasattr(model, "layers") else "backbone.", "layers")
