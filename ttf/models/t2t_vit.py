"""T2T-ViT (arXiv 2101.11986): tokens are gathered from neighbouring tokens twice before the blocks.

State dict as in the official ``81.5_T2T_ViT_14.pth.tar`` and ``81.7_T2T_ViTt_14.pth.tar`` (yitu-opensource/T2T-ViT,
Clear BSD). Shapes: B batch, N tokens, C channels.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from timm.layers import Mlp, trunc_normal_
from torch import Tensor, nn
from torch.nn import functional as F

from ttf.models.trunk import ClassTokenModel, initialise, layer_norm, trunk

TokenLayer = Literal["performer", "transformer"]
TOKEN_LAYERS = ("performer", "transformer")
FEATURES = 0.5  # random features of a performer layer per channel
EPSILON = 1e-8  # of the performer's denominator
DROPOUT = 0.1  # in performer layers, in training


class Performer(nn.Module):
    """A token layer with linear attention by positive random features (FAVOR+), one head, values as the residual.

    Args:
        incoming: channels of the tokens (B, N, incoming) that come in.
        width: channels of those that go out, (B, N, width).
    """

    def __init__(self, incoming: int, width: int) -> None:
        super().__init__()
        self.kqv = nn.Linear(incoming, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm1 = layer_norm(incoming)
        self.norm2 = layer_norm(width)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width), nn.Dropout(DROPOUT))
        self.drop = nn.Dropout(DROPOUT)
        features = int(width * FEATURES)
        directions = nn.init.orthogonal_(torch.empty(features, width)) * math.sqrt(features)
        self.w = nn.Parameter(directions, requires_grad=False)

    def _features(self, x: Tensor) -> Tensor:
        """exp(w x - |x|^2 / 2) / sqrt(features): (B, N, width) to (B, N, features)."""
        logits = x @ self.w.T - x.square().sum(dim=-1, keepdim=True) / 2
        return logits.exp() / math.sqrt(self.w.shape[0])

    def forward(self, x: Tensor) -> Tensor:
        keys, queries, values = self.kqv(self.norm1(x)).chunk(3, dim=-1)
        keys, queries = self._features(keys), self._features(queries)
        total = queries @ keys.sum(dim=1).unsqueeze(-1)  # (B, N, 1)
        attended = queries @ (keys.transpose(1, 2) @ values) / (total + EPSILON)
        x = values + self.drop(self.proj(attended))
        return x + self.mlp(self.norm2(x))


class TokenAttention(nn.Module):
    """Softmax attention of one head, values as the residual: (B, N, incoming) to (B, N, width).

    The scale of the logits is that of the width that comes in.
    """

    def __init__(self, incoming: int, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(incoming, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)
        self.scale = incoming**-0.5

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unsqueeze(1).chunk(3, dim=-1)
        attended = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return (v + self.proj(attended)).squeeze(1)


class Transformer(nn.Module):
    """A token layer with softmax attention. Arguments and shapes: see ``Performer``."""

    def __init__(self, incoming: int, width: int) -> None:
        super().__init__()
        self.norm1 = layer_norm(incoming)
        self.attn = TokenAttention(incoming, width)
        self.norm2 = layer_norm(width)
        self.mlp = Mlp(width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def _as_map(tokens: Tensor) -> Tensor:
    """Tokens (B, N, C) of a square grid to a map (B, C, side, side)."""
    side = math.isqrt(tokens.shape[1])
    return tokens.transpose(1, 2).unflatten(2, (side, side))


class TokensToToken(nn.Module):
    """Images (B, 3, H, W) to tokens (B, H/16 * W/16, width), square images alone.

    Args:
        layer: token layer, "performer" or "transformer".
        width: channels of the tokens.
        token_width: channels inside.
    """

    def __init__(self, layer: TokenLayer, width: int, token_width: int) -> None:
        super().__init__()
        kind = {"performer": Performer, "transformer": Transformer}[layer]
        self.soft_split0 = nn.Unfold(7, stride=4, padding=2)
        self.soft_split1 = nn.Unfold(3, stride=2, padding=1)
        self.soft_split2 = nn.Unfold(3, stride=2, padding=1)
        self.attention1 = kind(3 * 7 * 7, token_width)
        self.attention2 = kind(token_width * 3 * 3, token_width)
        self.project = nn.Linear(token_width * 3 * 3, width)

    def forward(self, images: Tensor) -> Tensor:
        x = self.attention1(self.soft_split0(images).transpose(1, 2))
        x = self.attention2(self.soft_split1(_as_map(x)).transpose(1, 2))
        return self.project(self.soft_split2(_as_map(x)).transpose(1, 2))


def sinusoid_table(tokens: int, width: int) -> Tensor:
    """Fixed positions (1, tokens, width): sine in even, cosine in odd columns; in float64, returned as float32."""
    position = torch.arange(tokens, dtype=torch.float64).unsqueeze(1)
    column = torch.arange(width, dtype=torch.float64)
    angle = position / 10000 ** (2 * torch.floor(column / 2) / width)
    return torch.where(column % 2 == 0, angle.sin(), angle.cos()).float().unsqueeze(0)


class T2TViT(ClassTokenModel):
    """T2T-ViT; the defaults are T2T-ViT-14. The logits' scale is (width / heads) ** -0.5, as in the published runs.

    Args:
        img_size: side of the images in pixels, a multiple of 16.
        num_classes: outputs of the head.
        layer: token layer, "performer" or "transformer" (the models named T2T-ViT_t).
        width, depth, heads, mlp_ratio: of the blocks (19: 448, 19, 7; 24: 512, 24, 8; both ratio 3).
        token_width: channels of the token layers.
        drop_path: rate of stochastic depth in the last block.

    Raises:
        ValueError: unknown ``layer``.
    """

    def __init__(
        self,
        img_size: int = 224,
        num_classes: int = 1000,
        layer: TokenLayer = "performer",
        width: int = 384,
        depth: int = 14,
        heads: int = 6,
        mlp_ratio: float = 3.0,
        token_width: int = 64,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__(img_size, num_classes)
        if layer not in TOKEN_LAYERS:
            raise ValueError(f"layer must be one of {', '.join(TOKEN_LAYERS)}, got {layer!r}")
        rows, columns = self.grid((img_size, img_size))
        self.tokens_to_token = TokensToToken(layer, width, token_width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(sinusoid_table(1 + rows * columns, width), requires_grad=False)
        self.blocks = trunk(depth, width, heads, mlp_ratio, drop_path)
        self.norm = layer_norm(width)
        self.head = nn.Linear(width, num_classes)
        self.apply(initialise)
        trunc_normal_(self.cls_token, std=0.02)

    def embed(self, images: Tensor) -> Tensor:
        """See ``ClassTokenModel.embed``."""
        self._check(images)
        patches = self.tokens_to_token(images)
        return torch.cat((self.cls_token.expand(len(patches), -1, -1), patches), dim=1) + self.pos_embed


def t2t_vit_14(num_classes: int = 1000, **kwargs: Any) -> T2TViT:
    """T2T-ViT-14, performer token layers: 21.5 M parameters, 4.8 GMACs, 81.5 top-1 (published)."""
    return T2TViT(num_classes=num_classes, **kwargs)


def t2t_vit_t_14(num_classes: int = 1000, **kwargs: Any) -> T2TViT:
    """T2T-ViT_t-14, transformer token layers: 21.5 M parameters, 6.1 GMACs, 81.7 top-1 (published)."""
    return T2TViT(num_classes=num_classes, layer="transformer", **kwargs)
