"""What the classifiers that no library has share: pre-norm blocks (timm's), a class token in front, a head on it.

Shapes: B batch, N tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, cast

from timm.layers import trunc_normal_
from timm.models.vision_transformer import Block
from torch import Tensor, nn

STRIDE = 16  # pixels from one token to the next, in all of them
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "interpolation": "bicubic"}
layer_norm: Any = partial(nn.LayerNorm, eps=1e-5)  # timm's own default is 1e-6


class Divide(nn.Module):
    """A residual branch divided by a constant, in the place where a block has its layer scale."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, x: Tensor) -> Tensor:
        return x / self.by

    def extra_repr(self) -> str:
        return f"by={self.by}"


def block(width: int, heads: int, mlp_ratio: float, drop_path: float = 0.0) -> Block:
    """timm's pre-norm block as these families use it: no qkv bias, LayerNorm eps 1e-5, exact GELU, scale D ** -0.5."""
    return Block(width, heads, mlp_ratio, qkv_bias=False, drop_path=drop_path, norm_layer=layer_norm)


def trunk(
    depth: int, width: int, heads: int, mlp_ratio: float, drop_path: float = 0.0, skip_lam: float = 1.0
) -> nn.Sequential:
    """``depth`` blocks.

    Args:
        depth, width, heads, mlp_ratio: of the blocks.
        drop_path: rate of stochastic depth in the last block, growing evenly from 0 in the first.
        skip_lam: both residual branches are divided by it (LV-ViT).
    """
    blocks = [block(width, heads, mlp_ratio, drop_path * i / max(1, depth - 1)) for i in range(depth)]
    if skip_lam != 1.0:
        for one in cast(list[Any], blocks):
            one.ls1, one.ls2 = Divide(skip_lam), Divide(skip_lam)
    return nn.Sequential(*blocks)


def initialise(module: nn.Module) -> None:
    """Initial weights of a linear layer, for ``nn.Module.apply``: normal with deviation 0.02, biases 0."""
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class ClassTokenModel(nn.Module):
    """Embedding, blocks, norm, a head on the class token; subclasses bring the parts and ``embed``.

    Args:
        img_size: side of the square images in pixels, a multiple of 16.
        num_classes: outputs of the head.
        crop_pct: of the published evaluation.
    """

    container: ClassVar[str] = "blocks"
    num_prefix_tokens: ClassVar[int] = 1
    norm: nn.Module
    head: nn.Module

    def __init__(self, img_size: int, num_classes: int, crop_pct: float = 0.9) -> None:
        super().__init__()
        if img_size % STRIDE or img_size < STRIDE:
            raise ValueError(f"img_size must be a multiple of {STRIDE}, got {img_size}")
        self.img_size, self.num_classes = img_size, num_classes
        size = {"input_size": (3, img_size, img_size), "crop_pct": crop_pct, "crop_mode": "center"}
        self.pretrained_cfg = {**IMAGENET, **size, "num_classes": num_classes}

    def grid(self, size: Sequence[int]) -> tuple[int, int]:
        """Rows and columns of the patch tokens of images of ``size`` (height, width)."""
        return size[0] // STRIDE, size[1] // STRIDE

    def _check(self, images: Tensor) -> None:
        if images.shape[-2:] != (self.img_size, self.img_size):
            height, width = images.shape[-2:]
            name = type(self).__name__
            raise ValueError(f"{name} was built for {self.img_size}x{self.img_size} images, got {height}x{width}")

    def embed(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) to the tokens that enter the blocks, (B, 1 + N, C)."""
        raise NotImplementedError

    def forward_features(self, images: Tensor) -> Tensor:
        """Tokens after the last norm, (B, 1 + N, C)."""
        return self.norm(cast(nn.Module, getattr(self, self.container))(self.embed(images)))

    def forward_head(self, tokens: Tensor) -> Tensor:
        """Logits (B, classes) of tokens after the last norm."""
        return self.head(tokens[:, 0])

    def get_classifier(self) -> nn.Module:
        """The head on the class token, under timm's name."""
        return self.head

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))
