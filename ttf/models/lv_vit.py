"""LV-ViT (arXiv 2104.10858): convolutional stem, divided residuals, and an auxiliary head that patches vote through.

State dict as in the official ``lvvit_s-26M-224-83.3.pth.tar`` (zihangJiang/TokenLabeling, Apache-2.0).
Shapes: B batch, N patch tokens, C channels.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn
from torch.nn import functional as F

from ttf.models.trunk import ClassTokenModel, initialise, layer_norm, trunk

AUXILIARY_WEIGHT = 0.5


class Stem(nn.Module):
    """Three convolutions with BatchNorm and ReLU, the first of stride 2, then 8x8 patches.

    Images (B, 3, H, W) to a map (B, C, H/16, W/16).

    Args:
        width: channels C of the tokens.
        hidden: channels of the three convolutions.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, hidden, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.conv3 = nn.Conv2d(hidden, hidden, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(hidden)
        self.proj = nn.Conv2d(hidden, width, 8, stride=8)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = F.relu(self.bn3(self.conv3(x)))
        return self.proj(x)


class LVViT(ClassTokenModel):
    """LV-ViT; the defaults are LV-ViT-S.

    Logits are those of the class token plus half of the largest auxiliary logit of any patch, class by class. In
    training the same: mixing tokens and labelling them belongs to the official training, not to the model.

    Args:
        img_size: side of the images in pixels, a multiple of 16.
        num_classes: outputs of both heads.
        width, depth, heads, mlp_ratio: of the blocks (T: 240, 12, 4; M: 512, 20, 8; L: 768, 24, 12; all ratio 3).
        skip_lam: both residual branches are divided by it (T: 1, M: 2, L: 3).
        stem_width: channels inside the stem.
        drop_path: rate of stochastic depth in the last block.
        crop_pct: of the published evaluation (M, L: 1.0).
    """

    def __init__(
        self,
        img_size: int = 224,
        num_classes: int = 1000,
        width: int = 384,
        depth: int = 16,
        heads: int = 6,
        mlp_ratio: float = 3.0,
        skip_lam: float = 2.0,
        stem_width: int = 64,
        drop_path: float = 0.0,
        crop_pct: float = 0.9,
    ) -> None:
        super().__init__(img_size, num_classes, crop_pct)
        rows, columns = self.grid((img_size, img_size))
        self.patch_embed = Stem(width, stem_width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + rows * columns, width))
        self.blocks = trunk(depth, width, heads, mlp_ratio, drop_path, skip_lam)
        self.norm = layer_norm(width)
        self.head = nn.Linear(width, num_classes)
        self.aux_head = nn.Linear(width, num_classes)
        self.apply(initialise)
        trunc_normal_(self.cls_token, std=0.02)
        trunc_normal_(self.pos_embed, std=0.02)

    def embed(self, images: Tensor) -> Tensor:
        """See ``ClassTokenModel.embed``."""
        self._check(images)
        patches = self.patch_embed(images).flatten(2).transpose(1, 2)
        return torch.cat((self.cls_token.expand(len(patches), -1, -1), patches), dim=1) + self.pos_embed

    def forward_head(self, tokens: Tensor, padding: Tensor | None = None) -> Tensor:
        """Logits (B, classes) of tokens (B, 1 + N, C) after the last norm.

        Args:
            tokens: as many patch tokens as there are.
            padding: (B, N) bool, patch tokens that have no say, or None.
        """
        votes = self.aux_head(tokens[:, 1:])
        if padding is not None:
            votes = votes.masked_fill(padding.unsqueeze(-1), -torch.inf)
        return self.head(tokens[:, 0]) + AUXILIARY_WEIGHT * votes.amax(dim=1)


def lv_vit_s(num_classes: int = 1000, **kwargs: Any) -> LVViT:
    """LV-ViT-S: 26.2 M parameters, 6.6 GMACs, 83.3 top-1 (published). ``kwargs``: see ``LVViT``."""
    return LVViT(num_classes=num_classes, **kwargs)
