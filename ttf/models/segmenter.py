"""Segmenter (arXiv 2105.05633) with the mask transformer: a ViT, class embeddings beside its patches, cosine masks.

State dict as in the official checkpoints (rstrudel/segmenter, MIT). Blocks are timm's.
Shapes: B batch, N patch tokens, C channels of the encoder, D channels of the decoder, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.layers import trunc_normal_
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from ttf.models.trunk import initialise, layer_norm

Grid = tuple[int, int]

PATCH = 16
HEAD_WIDTH = 64
UNUSED_CLASSES = 1000  # of the encoder's own classifier, which the official files hold and nothing reads
HALF = (0.5, 0.5, 0.5)


def block(width: int, heads: int, drop_path: float = 0.0, mlp_ratio: float = 4.0) -> Block:
    """timm's pre-norm block as Segmenter uses it: qkv with bias, LayerNorm eps 1e-5."""
    return Block(width, heads, mlp_ratio, qkv_bias=True, drop_path=drop_path, norm_layer=layer_norm)


def resize_positions(table: Tensor, old: Grid, new: Grid) -> Tensor:
    """A position table on another grid: the class token's row as it is, the others bilinearly.

    Args:
        table: (1, 1 + rows * columns, C).
        old, new: (rows, columns) of the patches.
    """
    if old == new:
        return table
    patches = table[:, 1:].unflatten(1, old).permute(0, 3, 1, 2)
    patches = F.interpolate(patches, new, mode="bilinear", align_corners=False)
    return torch.cat((table[:, :1], patches.flatten(2).transpose(1, 2)), dim=1)


class Patches(nn.Module):
    """Linear embedding of square patches: (B, 3, H, W) to (B, N, C)."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class Encoder(nn.Module):
    """A ViT without a head: images (B, 3, H, W), sides multiples of the patch, to normed tokens (B, 1 + N, C).

    Args:
        grid: (rows, columns) that the position table is for; other grids get it resized.
        width, depth, heads, mlp_ratio: of the blocks.
        drop_path: rate of stochastic depth in the last block, growing evenly from 0 in the first.
        patch: side of a patch in pixels.
    """

    def __init__(
        self,
        grid: Grid,
        width: int,
        depth: int,
        heads: int,
        drop_path: float = 0.0,
        patch: int = PATCH,
        mlp_ratio: float = 4.0,
    ) -> None:
        super().__init__()
        self.grid, self.patch = grid, patch
        self.patch_embed: nn.Module = Patches(width, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid[0] * grid[1], width))
        rates = [drop_path * i / max(1, depth - 1) for i in range(depth)]
        self.blocks = nn.Sequential(*(block(width, heads, rate, mlp_ratio) for rate in rates))
        self.norm = layer_norm(width)
        self.head = nn.Linear(width, UNUSED_CLASSES)

    def embed(self, images: Tensor) -> Tensor:
        """The tokens that enter the blocks, (B, 1 + N, C)."""
        rows, columns = (side // self.patch for side in images.shape[-2:])
        tokens = torch.cat((self.cls_token.expand(len(images), -1, -1), self.patch_embed(images)), dim=1)
        return tokens + resize_positions(self.pos_embed, self.grid, (rows, columns))

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.blocks(self.embed(images)))


class MaskDecoder(nn.Module):
    """Patches and class embeddings through some blocks, then a mask of each class by cosine similarity.

    Args:
        width: channels C of the encoder's tokens.
        num_classes: K.
        depth: number of blocks.
    """

    def __init__(self, width: int, num_classes: int, depth: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.proj_dec = nn.Linear(width, width)
        self.cls_emb = nn.Parameter(torch.zeros(1, num_classes, width))
        self.blocks = nn.Sequential(*(block(width, max(1, width // HEAD_WIDTH)) for _ in range(depth)))
        self.decoder_norm = layer_norm(width)
        self.proj_patch = nn.Parameter(width**-0.5 * torch.randn(width, width))
        self.proj_classes = nn.Parameter(width**-0.5 * torch.randn(width, width))
        self.mask_norm = layer_norm(num_classes)

    def embed(self, patches: Tensor) -> Tensor:
        """The encoder's patch tokens (B, N, C), and the class embeddings behind them: (B, N + K, D)."""
        return torch.cat((self.proj_dec(patches), self.cls_emb.expand(len(patches), -1, -1)), dim=1)

    def compare(self, tokens: Tensor) -> Tensor:
        """Mask logits (B, N, K) of the tokens (B, N + K, D) that the blocks give."""
        tokens = self.decoder_norm(tokens)
        patches, classes = tokens[:, : -self.num_classes], tokens[:, -self.num_classes :]
        patches = patches @ self.proj_patch
        classes = classes @ self.proj_classes
        patches = patches / patches.norm(dim=-1, keepdim=True)
        classes = classes / classes.norm(dim=-1, keepdim=True)
        return self.mask_norm(patches @ classes.transpose(1, 2))

    def forward(self, patches: Tensor, grid: Grid) -> Tensor:
        """Patch tokens (B, N, C) on a grid (rows, columns) to mask logits (B, K, rows, columns)."""
        return as_map(self.compare(self.blocks(self.embed(patches))), grid)


def as_map(tokens: Tensor, grid: Grid) -> Tensor:
    """Tokens (B, N, K) in raster order as a map (B, K, rows, columns)."""
    return tokens.transpose(1, 2).unflatten(2, grid)


class Segmenter(nn.Module):
    """Images (B, 3, H, W) of any size to logits (B, K, H, W).

    Sides that are no multiples of the patch are filled up with zeros at the right and at the bottom; logits are
    cropped back.

    Args:
        img_size: side of the square images that the position table is for, or (height, width); multiples of the patch.
        num_classes: K.
        width, depth, heads, mlp_ratio: of the encoder.
        decoder_depth: number of blocks of the decoder.
        drop_path: of the encoder, see ``Encoder``.
        patch: side of a patch in pixels.

    Raises:
        ValueError: a side of img_size is no multiple of the patch.
    """

    def __init__(
        self,
        img_size: int | Sequence[int] = 512,
        num_classes: int = 150,
        width: int = 192,
        depth: int = 12,
        heads: int = 3,
        decoder_depth: int = 2,
        drop_path: float = 0.0,
        patch: int = PATCH,
        mlp_ratio: float = 4.0,
    ) -> None:
        super().__init__()
        height, columns = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
        if height % patch or columns % patch or min(height, columns) < patch:
            raise ValueError(f"img_size must be a multiple of {patch}, got {img_size}")
        self.img_size, self.num_classes, self.patch = (height, columns), num_classes, patch
        grid = (height // patch, columns // patch)
        self.encoder = Encoder(grid, width, depth, heads, drop_path, patch, mlp_ratio)
        self.decoder = MaskDecoder(width, num_classes, decoder_depth)
        self.pretrained_cfg = {
            "input_size": (3, height, columns),
            "num_classes": num_classes,
            "mean": HALF,
            "std": HALF,
            "interpolation": "bilinear",
        }
        self.apply(initialise)
        for table in (self.encoder.cls_token, self.encoder.pos_embed, self.decoder.cls_emb):
            trunc_normal_(table, std=0.02)

    def grid(self, size: Sequence[int]) -> Grid:
        """Rows and columns of the patches of images of ``size`` (height, width), the filled-up ones included."""
        return -(-size[0] // self.patch), -(-size[1] // self.patch)

    def forward_features(self, images: Tensor) -> Tensor:
        """Tokens after the encoder's norm, class token in front: (B, 1 + N, C); sides are multiples of the patch."""
        return self.encoder(images)

    def forward_masks(self, images: Tensor) -> Tensor:
        """Mask logits of the patches, (B, K, rows, columns); sides are multiples of the patch."""
        return self.decoder(self.forward_features(images)[:, 1:], self.grid(images.shape[-2:]))

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        rows, columns = self.grid((height, width))
        whole = F.pad(images, (0, columns * self.patch - width, 0, rows * self.patch - height))
        logits = F.interpolate(self.forward_masks(whole), whole.shape[-2:], mode="bilinear", align_corners=False)
        return logits[..., :height, :width]


def segmenter_ti(num_classes: int = 150, **kwargs: Any) -> Segmenter:
    """Seg-Ti-Mask/16 for 512x512: 6.9 M parameters, 38.1 mIoU on ADE20K (published). ``kwargs``: see ``Segmenter``."""
    return Segmenter(num_classes=num_classes, **kwargs)


def segmenter_s(num_classes: int = 150, **kwargs: Any) -> Segmenter:
    """Seg-S-Mask/16 for 512x512. ``kwargs``: see ``Segmenter``."""
    return Segmenter(num_classes=num_classes, **{"width": 384, "heads": 6, **kwargs})


def segmenter_l(num_classes: int = 150, **kwargs: Any) -> Segmenter:
    """Seg-L-Mask/16 for 640x640: 334 M parameters, 51.8 mIoU on ADE20K (published).

    The Cityscapes model has num_classes=19, img_size=768, decoder_depth=1. ``kwargs``: see ``Segmenter``.
    """
    large = {"img_size": 640, "width": 1024, "depth": 24, "heads": 16}
    return Segmenter(num_classes=num_classes, **{**large, **kwargs})


def encoder_from_timm(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of ``model`` with the encoder of a timm ViT, to fine-tune from; the rest as it is.

    Args:
        model: with an ``Encoder`` of the ViT's width and depth, for images of any size.
        tensors: state dict of a timm ViT with a class token and 16x16 patches (vit_tiny_patch16_224 and so on), of
            square images. Its classifier is left out, its position table resized to the model's grid.

    Returns:
        For ``ttf.models.weights.load_strictly``, which names what does not fit.

    Raises:
        ValueError: the model has no such encoder, or the position table is that of no square grid behind one class
            token.
    """
    encoder: Any = getattr(model, "encoder", None)
    if not isinstance(encoder, Encoder):
        raise ValueError(f"{type(model).__name__} has no plain ViT as its encoder: set encoder=null")
    if "pos_embed" not in tensors:
        raise ValueError("these are no weights of a timm ViT (no pos_embed): give a checkpoint of vit_*_patch16_*")
    table = tensors["pos_embed"]
    side = round((table.shape[1] - 1) ** 0.5)
    if side * side + 1 != table.shape[1]:
        raise ValueError(
            f"pos_embed has {table.shape[1]} rows, not those of one class token and a square grid: "
            "give a ViT without distillation or register tokens"
        )
    taken = {name: value for name, value in tensors.items() if not name.startswith("head.")}
    taken["pos_embed"] = resize_positions(table, (side, side), encoder.grid)
    left = {name: value for name, value in model.state_dict().items() if not name.startswith("encoder.")}
    own = left | {f"encoder.{name}": value for name, value in encoder.state_dict().items() if name.startswith("head.")}
    return {**own, **{f"encoder.{name}": value for name, value in taken.items()}}
