"""DPT (arXiv 2103.13413) for depth: four maps from a ViT's blocks (and a ResNet's stages), fused from deep to shallow.

State dict as in the official checkpoints (isl-org/DPT, MIT). Backbones are timm's. Shapes: B batch, N patch tokens, C
channels of the ViT, F channels of the fusion, rows and columns of the patches.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from timm.layers import StdConv2dSame
from timm.layers.hybrid_embed import HybridEmbed
from timm.layers.padding import pad_same
from timm.models.resnetv2 import ResNetV2
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from ttf.models.segmenter import Grid, resize_positions

STRIDE = 16  # pixels from one token to the next, in the official models
HALF = (0.5, 0.5, 0.5)
FACTORS = (4.0, 2.0, 1.0, 0.5)  # of the maps, shallow to deep, over a grid of 16x16 patches
STAGES = 2  # maps that a hybrid takes from its ResNet


class Inverse(nn.Module):
    """Depth in metres of a disparity x: 1 / max(scale * max(x, 0) + shift, 1e-8).

    Args:
        scale, shift: of the disparity; the defaults are those of NYUv2. KITTI: 0.00006016 and 0.00579.
    """

    def __init__(self, scale: float = 0.000305, shift: float = 0.1378) -> None:
        super().__init__()
        self.scale, self.shift = scale, shift

    def forward(self, x: Tensor) -> Tensor:
        return 1 / (self.scale * x.relu() + self.shift).clamp_min(1e-8)


class Bounded(nn.Module):
    """Depth in metres between 0 and ``farthest``: farthest * sigmoid(x)."""

    def __init__(self, farthest: float = 10.0) -> None:
        super().__init__()
        self.farthest = farthest

    def forward(self, x: Tensor) -> Tensor:
        return self.farthest * x.sigmoid()


class StandardizedConv(StdConv2dSame):
    """timm's convolution with standardised weights as the checkpoint was trained: (w - mean) / (std + 1e-5)."""

    def forward(self, x: Tensor) -> Tensor:
        if self.same_pad:
            x = pad_same(x, cast(Any, self.kernel_size), cast(Any, self.stride), cast(Any, self.dilation))
        std, mean = torch.std_mean(self.weight, dim=(1, 2, 3), keepdim=True, correction=0)
        return self._conv_forward(x, (self.weight - mean) / (std + 1e-5), self.bias)


class Readout(nn.Module):
    """The class token joined to every patch token: (B, 1 + N, C) to (B, N, C)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.project = nn.Sequential(nn.Linear(2 * width, width), nn.GELU())

    def forward(self, tokens: Tensor) -> Tensor:
        patches = tokens[:, 1:]
        return self.project(torch.cat((patches, tokens[:, :1].expand_as(patches)), dim=-1))


class Reassemble(nn.Sequential):
    """Tokens behind a block as a map, larger or smaller than their grid.

    Args:
        width: channels C of the tokens.
        channels: of the map.
        factor: side of the map over that of the grid: a power of 2, or of 1/2.
    """

    def __init__(self, width: int, channels: int, factor: float) -> None:
        parts: dict[str, nn.Module] = {"0": Readout(width), "3": nn.Conv2d(width, channels, 1)}
        if factor > 1:
            parts["4"] = nn.ConvTranspose2d(channels, channels, int(factor), stride=int(factor))
        elif factor < 1:
            parts["4"] = nn.Conv2d(channels, channels, 3, stride=int(1 / factor), padding=1)
        super().__init__(OrderedDict(parts))

    def narrow(self, tokens: Tensor) -> Tensor:
        """What is done token by token, (B, 1 + N, C) to (B, N, channels): any N, no grid."""
        patches = self[0](tokens).transpose(1, 2).unsqueeze(-1)
        return self[1](patches).squeeze(-1).transpose(1, 2)

    def as_map(self, patches: Tensor, grid: Grid) -> Tensor:
        """Patches (B, N, channels) in raster order as a map (B, channels, rows * factor, columns * factor)."""
        x = patches.transpose(1, 2).unflatten(2, grid)
        return self[2](x) if len(self) > 2 else x

    def forward(self, tokens: Tensor, grid: Grid) -> Tensor:  # type: ignore[override]
        return self.as_map(self.narrow(tokens), grid)


class ResidualUnit(nn.Module):
    """x + conv(relu(conv(relu(x)))), 3x3 convolutions."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(features, features, 3, padding=1)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.conv1(x.relu()).relu())


def twice_as_large(x: Tensor) -> Tensor:
    """A map (B, F, h, w) as (B, F, 2 h, 2 w), bilinearly, corners on corners."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)


class Fusion(nn.Module):
    """The deeper map and the next shallower one, together and twice as large. The deepest one comes alone."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.out_conv = nn.Conv2d(features, features, 1)
        self.resConfUnit1 = ResidualUnit(features)  # the deepest one has it in the official files, and never reads it
        self.resConfUnit2 = ResidualUnit(features)

    def forward(self, deeper: Tensor, x: Tensor | None = None) -> Tensor:
        if x is not None:
            # a grid of odd sides was halved to one that is larger than its half
            deeper = deeper[..., : x.shape[-2], : x.shape[-1]] + self.resConfUnit1(x)
        return self.out_conv(twice_as_large(self.resConfUnit2(deeper)))


class Enlarge(nn.Module):
    """``twice_as_large`` as a module."""

    def forward(self, x: Tensor) -> Tensor:
        return twice_as_large(x)


class Pretrained(nn.Module):
    """The backbone, and what makes maps of its tokens.

    Args:
        model: the ViT.
        widths: channels of the four maps.
        factors: of their sides over those of the grid.
        reassembled: numbers (from 1) of the maps that come from tokens.
    """

    def __init__(
        self, model: VisionTransformer, widths: Sequence[int], factors: Sequence[float], reassembled: Sequence[int]
    ) -> None:
        super().__init__()
        self.model = model
        for number in reassembled:
            part = Reassemble(model.embed_dim, widths[number - 1], factors[number - 1])
            self.add_module(f"act_postprocess{number}", part)


class Scratch(nn.Module):
    """What has never been pre-trained: all maps to F channels, fusion from deep to shallow, the head.

    Args:
        widths: channels of the four maps.
        features: channels F.
    """

    def __init__(self, widths: Sequence[int], features: int) -> None:
        super().__init__()
        for number, width in enumerate(widths, 1):
            self.add_module(f"layer{number}_rn", nn.Conv2d(width, features, 3, padding=1, bias=False))
        for number in range(1, len(widths) + 1):
            self.add_module(f"refinenet{number}", Fusion(features))
        self.output_conv = nn.Sequential(
            nn.Conv2d(features, features // 2, 3, padding=1),
            Enlarge(),
            nn.Conv2d(features // 2, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 1, 1),
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps of 1/4, 1/8, 1/16 and 1/32 of the image to (B, 1, H, W), which an output makes depth of."""
        layers = [self.get_submodule(f"layer{number}_rn")(x) for number, x in enumerate(maps, 1)]
        x = self.get_submodule(f"refinenet{len(layers)}")(layers[-1])
        for number in range(len(layers) - 1, 0, -1):
            x = self.get_submodule(f"refinenet{number}")(x, layers[number - 1])
        return self.output_conv(x)


class DPT(nn.Module):
    """Images (B, 3, H, W), sides multiples of the patch, to depth (B, H, W) in metres.

    Args:
        backbone: a timm ViT with a class token and patches of 16 or 8 pixels, or one behind three stages of a ResNet
            (hybrid), whose first two stages then give the two fine maps.
        taps: 0-based blocks of the ViT whose tokens become maps, shallow to deep: four, or two of a hybrid.
        output: makes depth of the head's last map: ``Inverse`` or ``Bounded``.
        widths: channels of the four maps.
        features: channels F of the fusion.
        img_size: (height, width) that the weights were trained for.

    Raises:
        ValueError: another number of taps, or taps that are not among the blocks, in order.
    """

    def __init__(
        self,
        backbone: VisionTransformer,
        taps: Sequence[int],
        output: nn.Module | None = None,
        widths: Sequence[int] = (256, 512, 768, 768),
        features: int = 256,
        img_size: Sequence[int] = (480, 640),
    ) -> None:
        super().__init__()
        self.hybrid = isinstance(backbone.patch_embed, HybridEmbed)
        depth, wanted = len(cast(Any, backbone.blocks)), len(FACTORS) - (STAGES if self.hybrid else 0)
        if len(taps) != wanted or sorted({*taps}) != [*taps] or not 0 <= taps[0] <= taps[-1] < depth:
            raise ValueError(f"taps must be {wanted} of the blocks 0 to {depth - 1} in order, got {list(taps)}")
        self.taps, self.img_size = tuple(taps), (img_size[0], img_size[1])
        self.stride = STRIDE if self.hybrid else int(cast(Any, backbone.patch_embed).patch_size[0])
        self.first = len(FACTORS) - wanted + 1  # number of the first map that comes from tokens
        factors = [factor * self.stride / STRIDE for factor in FACTORS]
        self.pretrained = Pretrained(backbone, widths, factors, range(self.first, len(FACTORS) + 1))
        self.scratch = Scratch(widths, features)
        self.output = output or Inverse()
        self.pretrained_cfg = {
            "input_size": (3, *self.img_size),
            "mean": HALF,
            "std": HALF,
            "interpolation": "bicubic",
        }

    @property
    def vit(self) -> VisionTransformer:
        """The ViT."""
        return self.pretrained.model

    def grid(self, size: Sequence[int]) -> Grid:
        """Rows and columns of the patches of images of ``size`` (height, width)."""
        return size[0] // self.stride, size[1] // self.stride

    def embed(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The tokens that enter the blocks, (B, 1 + N, C), and the maps of a hybrid's ResNet."""
        embedding, x = cast(Any, self.vit.patch_embed), images
        maps: list[Tensor] = []
        if self.hybrid:
            x = embedding.backbone.stem(x)
            for stage in embedding.backbone.stages:
                maps.append(x := stage(x))
        patches = embedding.proj(x).flatten(2).transpose(1, 2)
        vit = cast(Any, self.vit)
        tokens = torch.cat((vit.cls_token.expand(len(images), -1, -1), patches), dim=1)
        old = tuple(embedding.grid_size)
        return tokens + resize_positions(vit.pos_embed, old, self.grid(images.shape[-2:])), maps[:STAGES]

    def reassemble(self, number: int, tokens: Tensor, grid: Grid) -> Tensor:
        """Map ``number`` (1 to 4) from the tokens (B, 1 + N, C) behind a tap."""
        return self.pretrained.get_submodule(f"act_postprocess{number}")(tokens, grid)

    def maps(self, images: Tensor) -> list[Tensor]:
        """The four maps, fine to coarse."""
        tokens, maps = self.embed(images)
        grid = self.grid(images.shape[-2:])
        for number, block in enumerate(cast(Any, self.vit.blocks)):
            tokens = block(tokens)
            if number in self.taps:
                maps.append(self.reassemble(self.first + self.taps.index(number), tokens, grid))
        return maps

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        if height % self.stride or width % self.stride:
            raise ValueError(f"images must have sides that are multiples of {self.stride}, got {height}x{width}")
        return self.output(self.scratch(self.maps(images))).squeeze(1)

    def with_encoder(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state dict of the model with the weights of a timm ViT in its own, to fine-tune from.

        Args:
            tensors: state dict of a timm ViT with a class token, of square images, of the width and depth of the
                model's own. Its norm and classifier are left out, its position table is resized.

        Raises:
            ValueError: the position table is that of no square grid behind one class token.
        """
        table = tensors.get("pos_embed")
        side = 0 if table is None else round((table.shape[1] - 1) ** 0.5)
        if table is None or side * side + 1 != table.shape[1]:
            raise ValueError("these are no weights of a timm ViT with one class token and a square grid")
        own, start = self.state_dict(), "pretrained.model."
        taken = {start + name: value for name, value in tensors.items() if not name.startswith(("head.", "norm."))}
        grid = tuple(cast(Any, self.vit.patch_embed).grid_size)
        taken[start + "pos_embed"] = resize_positions(table, (side, side), grid)
        unread = (f"{start}norm.", f"{start}head.")
        kept = {n: value for n, value in own.items() if not n.startswith(start) or n.startswith(unread)}
        return {**kept, **taken}


def resnet(conv: Any = StandardizedConv) -> ResNetV2:
    """The first three stages of BiT's ResNet-50 without pre-activation, as ViT's hybrids have them."""
    return ResNetV2(layers=[3, 4, 9], num_classes=0, global_pool="", preact=False, stem_type="same", conv_layer=conv)


def dpt_hybrid(output: nn.Module | None = None, taps: Sequence[int] = (8, 11)) -> DPT:
    """DPT-Hybrid: ViT-B behind a ResNet-50; 123.1 M parameters, 279.6 GMACs at 480x640.

    Args:
        output: ``Inverse`` with the numbers of NYUv2 unless told.
        taps: 0-based blocks.
    """
    embed: Any = partial(HybridEmbed, backbone=resnet())
    vit = VisionTransformer(
        img_size=384, patch_size=1, num_classes=1000, embed_dim=768, depth=12, num_heads=12, embed_layer=embed
    )
    return DPT(vit, taps, output)


def dpt_ti(
    output: nn.Module | None = None, taps: Sequence[int] = (2, 5, 8, 11), img_size: Sequence[int] = (240, 320)
) -> DPT:
    """DPT on ViT-Ti/16: all four maps from tokens; 6.6 M parameters.

    Args:
        output: ``Bounded`` to 10 metres unless told.
        taps: 0-based blocks.
        img_size: (height, width) of the images that the position table is for.
    """
    size: Any = tuple(img_size)
    vit = VisionTransformer(img_size=size, patch_size=STRIDE, num_classes=0, embed_dim=192, depth=12, num_heads=3)
    vit.norm = nn.Identity()  # taps are raw
    model: Any = DPT(vit, taps, output or Bounded(), widths=(48, 96, 192, 192), features=32, img_size=size)
    return model.to(memory_format=torch.channels_last)  # on a CPU a quarter less time than in the other order
