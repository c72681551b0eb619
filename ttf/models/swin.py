"""Swin Transformer (arXiv 2103.14030) as detectors use it: images of any size, the normed maps of chosen stages.

State dict as in the original (Microsoft, DINO's backbone); ``from_mmdet`` takes mmdet's names.
Shapes: B batch, H, W rows and columns of a map, C channels, w side of a window in tokens, nW windows of an image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from timm.layers import DropPath, Mlp, trunc_normal_
from torch import Tensor, nn
from torch.nn import functional as F

from ttf.models.trunk import IMAGENET, initialise, layer_norm

Size = tuple[int, int]

APART = -100.0  # added to the logits of two tokens of a shifted window that are no neighbours in the map
MERGED = 4  # tokens that become one between two stages


def partition(x: Tensor, window: int) -> Tensor:
    """A map (B, H, W, C) as windows (B * nW, w * w, C), row by row; H and W are multiples of w."""
    batch, height, width, channels = x.shape
    x = x.view(batch, height // window, window, width // window, window, channels)
    return x.transpose(2, 3).reshape(-1, window * window, channels)


def unpartition(windows: Tensor, window: int, size: Size) -> Tensor:
    """Windows (B * nW, w * w, C) as the map (B, H, W, C) of a size (H, W)."""
    rows, columns = size[0] // window, size[1] // window
    x = windows.view(-1, rows, columns, window, window, windows.shape[-1])
    return x.transpose(2, 3).reshape(-1, *size, windows.shape[-1])


def filled(size: Size, window: int) -> Size:
    """The size of a map that is filled up to multiples of the window."""
    return -(-size[0] // window) * window, -(-size[1] // window) * window


def relative_index(rows: Tensor, columns: Tensor, window: int) -> Tensor:
    """Row of the bias table for each pair of places: rows, columns (..., N) to (..., N, N) int64."""
    down = rows.unsqueeze(-1) - rows.unsqueeze(-2) + window - 1
    across = columns.unsqueeze(-1) - columns.unsqueeze(-2) + window - 1
    return down * (2 * window - 1) + across


def region(places: Tensor, length: int, window: int, shift: int) -> Tensor:
    """Which part of a rolled side of ``length`` places are in: 0, 1 or 2. Windows that are cut attend within a part."""
    return (places >= length - window).long() + (places >= length - shift).long()


def shift_mask(size: Size, window: int, shift: int, like: Tensor) -> Tensor:
    """What is added to the logits of shifted windows, (nW, w * w, w * w): 0, or ``APART`` across an edge of the map."""
    rows, columns = (region(torch.arange(side, device=like.device), side, window, shift) for side in size)
    parts = partition((3 * rows.unsqueeze(1) + columns)[None, :, :, None], window).squeeze(-1)
    return (parts.unsqueeze(1) != parts.unsqueeze(2)).to(like.dtype) * APART


class WindowAttention(nn.Module):
    """Attention inside of windows, with a learned bias for every offset: (B * nW, w * w, C) to the same.

    Args:
        width: channels C. window: side w. heads: number of heads. qkv_bias: whether queries, keys, values have a bias.
    """

    def __init__(self, width: int, window: int, heads: int, qkv_bias: bool = True) -> None:
        super().__init__()
        self.num_heads, self.scale = heads, (width // heads) ** -0.5
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        places = torch.arange(window, device="cpu")  # a table, also of a model without memory
        rows, columns = torch.meshgrid(places, places, indexing="ij")
        self.register_buffer("relative_position_index", relative_index(rows.flatten(), columns.flatten(), window))
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.attn_drop = nn.Dropout(0.0)
        self.proj = nn.Linear(width, width)
        self.proj_drop = nn.Dropout(0.0)
        trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Args: x: (B * nW, N, C). mask: (nW, N, N) that is added to the logits, or None."""
        index = cast(Tensor, self.relative_position_index)
        bias = self.relative_position_bias_table[index].permute(2, 0, 1).unsqueeze(0)  # (1, heads, N, N)
        if mask is not None:
            bias = (bias + mask.unsqueeze(1)).repeat(len(x) // len(mask), 1, 1, 1)
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype), scale=self.scale)
        return self.proj_drop(self.proj(out.transpose(1, 2).flatten(2)))


class SwinBlock(nn.Module):
    """Attention in windows, in every second block shifted by half of one, then the feed-forward half.

    Args:
        width: channels C. heads: number of heads. window: side w. shift: of the windows, in tokens.
        mlp_ratio: hidden width over C. drop_path: rate of stochastic depth.
    """

    def __init__(
        self, width: int, heads: int, window: int, shift: int, mlp_ratio: float = 4.0, drop_path: float = 0.0,
        qkv_bias: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.window_size, self.shift_size = window, shift
        self.norm1 = layer_norm(width)
        self.attn = WindowAttention(width, window, heads, qkv_bias)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.norm2 = layer_norm(width)
        self.mlp = Mlp(width, int(mlp_ratio * width))

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """Tokens (B, H * W, C) of a map of a size (H, W), to the same."""
        x = x + self.drop_path(self._attended(self.norm1(x), size))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def _attended(self, x: Tensor, size: Size) -> Tensor:
        """Attention of normed tokens. What fills up the map is zero, and is attended to as the original does."""
        (height, width), (rows, columns) = size, filled(size, self.window_size)
        x = F.pad(x.unflatten(1, size), (0, 0, 0, columns - width, 0, rows - height))
        mask, shift = None, self.shift_size
        if shift:
            x = x.roll((-shift, -shift), (1, 2))
            mask = shift_mask((rows, columns), self.window_size, shift, x)
        x = self.attn(partition(x, self.window_size), mask)
        x = unpartition(x, self.window_size, (rows, columns))
        x = x.roll((shift, shift), (1, 2)) if shift else x
        return x[:, :height, :width].flatten(1, 2)


class PatchMerging(nn.Module):
    """Four neighbours to one token of twice the width; an odd map is filled up with zeros.

    Args:
        width: channels C.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(MERGED * width, 2 * width, bias=False)
        self.norm = layer_norm(MERGED * width)

    def forward(self, x: Tensor, size: Size) -> tuple[Tensor, Size]:
        """Tokens (B, H * W, C) to (B, ceil(H / 2) * ceil(W / 2), 2 C), and the new size."""
        x = F.pad(x.unflatten(1, size), (0, 0, 0, size[1] % 2, 0, size[0] % 2))
        parts = [x[:, down::2, across::2] for across in (0, 1) for down in (0, 1)]
        x = torch.cat(parts, dim=-1)
        return self.reduction(self.norm(x.flatten(1, 2))), (x.shape[1], x.shape[2])


class SwinStage(nn.Module):
    """Blocks, plain and shifted in turn, and what leads to the next stage: tokens (B, H * W, C) and (H, W) to those of
    the next stage, and those before it."""

    def __init__(self, blocks: Sequence[SwinBlock], downsample: PatchMerging | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample

    def forward(self, x: Tensor, size: Size) -> tuple[Tensor, Size, Tensor, Size]:
        for block in self.blocks:
            x = block(x, size)
        if self.downsample is None:
            return x, size, x, size
        return *self.downsample(x, size), x, size


class PatchEmbed(nn.Module):
    """Patches of 4 x 4 pixels: images (B, 3, H, W), filled up with zeros, to tokens and the size of their map."""

    def __init__(self, width: int, patch: int = 4) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Conv2d(3, width, patch, stride=patch)
        self.norm = layer_norm(width)

    def forward(self, images: Tensor) -> tuple[Tensor, Size]:
        height, width = images.shape[-2:]
        x = self.proj(F.pad(images, (0, -width % self.patch, 0, -height % self.patch)))
        return self.norm(x.flatten(2).transpose(1, 2)), (x.shape[2], x.shape[3])


class SwinTransformer(nn.Module):
    """Images (B, 3, H, W) of any size to a list of maps (B, C_i, H_i, W_i), one of each stage in ``outputs``.

    Args:
        width: channels of the first stage, twice as many in each later one.
        depths, heads: blocks and heads of each stage.
        window: side of the windows in tokens.
        outputs: stages whose maps are given, from 0 on.
        mlp_ratio: hidden width over channels. drop_path: rate of stochastic depth in the last block.
        input_size: side of the square images that costs are counted for.
    """

    def __init__(
        self, width: int = 96, depths: Sequence[int] = (2, 2, 6, 2), heads: Sequence[int] = (3, 6, 12, 24),
        window: int = 7, outputs: Sequence[int] = (0, 1, 2, 3), mlp_ratio: float = 4.0, drop_path: float = 0.0,
        input_size: int = 384,
    ) -> None:  # fmt: skip
        super().__init__()
        self.depths, self.outputs = tuple(depths), tuple(outputs)
        self.pretrained_cfg = {**IMAGENET, "input_size": (3, input_size, input_size), "crop_pct": None}
        self.widths = tuple(width * 2**i for i in range(len(depths)))
        self.patch_embed = PatchEmbed(width)
        rates = [drop_path * i / max(1, sum(depths) - 1) for i in range(sum(depths))]
        self.layers = nn.ModuleList()
        for stage, (channels, depth) in enumerate(zip(self.widths, depths, strict=True)):
            first = sum(depths[:stage])
            blocks = [
                SwinBlock(channels, heads[stage], window, (i % 2) * (window // 2), mlp_ratio, rates[first + i])
                for i in range(depth)
            ]
            last = stage == len(depths) - 1
            self.layers.append(SwinStage(blocks, None if last else PatchMerging(channels)))
        for stage in self.outputs:
            self.add_module(f"norm{stage}", layer_norm(self.widths[stage]))
        self.apply(initialise)

    def forward(self, images: Tensor) -> list[Tensor]:
        x, size = self.patch_embed(images)
        maps = []
        for number, stage in enumerate(self.layers):
            x, size, out, place = stage(x, size)
            if number in self.outputs:
                out = getattr(self, f"norm{number}")(out)
                maps.append(out.transpose(1, 2).unflatten(2, place))
        return maps


def swin_l(**kwargs: Any) -> SwinTransformer:
    """Swin-L with windows of 12, the backbone of DINO: 195.2 M parameters. ``kwargs``: see ``SwinTransformer``."""
    return SwinTransformer(**{"width": 192, "depths": (2, 2, 18, 2), "heads": (6, 12, 24, 48), "window": 12, **kwargs})


# mmdet's names

RENAMED = {
    "stages.": "layers.",
    "attn.w_msa.": "attn.",
    "ffn.layers.0.0.": "mlp.fc1.",
    "ffn.layers.1.": "mlp.fc2.",
    "patch_embed.projection.": "patch_embed.proj.",
}
ORDER = (0, 2, 1, 3)  # place of a neighbour among the four that are merged, for mmdet's four


def from_mmdet(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of mmdet's ``SwinTransformer`` under the original's names.

    Columns of the merging layers change their order, too: mmdet's c * 4 + k is the original's o * C + c.
    """
    found = {}
    for name, value in tensors.items():
        if "downsample." in name:
            grouped = value.unflatten(-1, (-1, MERGED))[..., list(ORDER)]  # (..., C, o)
            value = grouped.transpose(-1, -2).flatten(-2)
        for theirs, ours in RENAMED.items():
            name = name.replace(theirs, ours)
        found[name] = value
    return found
