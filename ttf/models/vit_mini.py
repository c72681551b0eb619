"""The small models of the embedded scale: ``vit_mini`` in timm's own classes, and dense models on its blocks."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, cast

from timm.layers import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from ttf.models.detector import ViTDet
from ttf.models.dpt import DPT, Bounded
from ttf.models.segmenter import Segmenter

PREPROCESSING = {
    "input_size": (3, 96, 96),
    "interpolation": "bicubic",
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
    "crop_pct": 1.0,
    "crop_mode": "center",
}


class ConvStem(PatchEmbed):
    """Patch embedding by three stride-2 convolutions (8x8 patches): learns far faster than one stride-8 convolution.

    Input (B, 3, H, W), output (B, H/8 * W/8, C), like timm's ``PatchEmbed``.
    """

    def __init__(self, in_chans: int = 3, embed_dim: int = 96, **kwargs) -> None:
        super().__init__(in_chans=in_chans, embed_dim=embed_dim, **kwargs)
        widths = (in_chans, embed_dim // 4, embed_dim // 2, embed_dim)
        layers: list[nn.Module] = []
        for narrow, wide in pairwise(widths):
            layers += [nn.Conv2d(narrow, wide, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(wide), nn.GELU()]
        self.proj = cast(Any, nn.Sequential(*layers[:-1]))


def vit_mini(num_classes: int = 10, **kwargs) -> VisionTransformer:
    """12 blocks, width 96, 3 heads, 144 tokens of 96x96 images and a class token; 1.2 M parameters.

    Args:
        num_classes: outputs of the head.
        **kwargs: passed on to timm's ``VisionTransformer``.
    """
    model = VisionTransformer(
        img_size=96,
        patch_size=8,
        embed_dim=96,
        depth=12,
        num_heads=3,
        mlp_ratio=3,
        num_classes=num_classes,
        embed_layer=ConvStem,
        weight_init="jax",
        **kwargs,
    )
    cast(Any, model).pretrained_cfg = {**PREPROCESSING, "num_classes": num_classes, "architecture": "vit_mini"}
    return model


def _stem() -> Any:
    """The stem of ``vit_mini`` for an encoder that takes images of any size."""
    return ConvStem(img_size=96, patch_size=8, embed_dim=96, strict_img_size=False)


def segmenter_mini(num_classes: int = 11) -> Segmenter:
    """A Segmenter on the encoder of ``vit_mini``: 96x96 images, 144 tokens, masks of the background and ten digits."""
    model = Segmenter(
        img_size=96, num_classes=num_classes, width=96, depth=12, heads=3, patch=8, mlp_ratio=3.0, decoder_depth=1
    )
    model.encoder.patch_embed = _stem()
    return model


def dpt_mini() -> DPT:
    """A DPT on ``vit_mini``: 96x96 images, 144 tokens, depths up to 10 metres."""
    vit = vit_mini(num_classes=0)
    vit.norm = nn.Identity()  # taps are raw
    return DPT(vit, (2, 5, 8, 11), Bounded(), widths=(24, 48, 96, 96), features=32, img_size=(96, 96))


def vitdet_mini(num_classes: int = 10) -> ViTDet:
    """A detector on the blocks of ``vit_mini``: 96x96 images, 144 tokens, one level of stride 8."""
    model = ViTDet(num_classes, (96, 96), width=96, depth=12, heads=3, features=48, patch=8, mlp_ratio=3.0)
    model.encoder.patch_embed = _stem()
    return model
