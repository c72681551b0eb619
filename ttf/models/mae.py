"""MAE ViT-H/14 fine-tuned (arXiv 2111.06377), on timm's definition.

The official ``mae_finetuned_vit_huge.pth`` (facebookresearch/mae, CC-BY-NC 4.0, code and weights) has the same names
and shapes as timm's Vision Transformer that averages the patch tokens and then normalises them (``fc_norm``).
"""

from __future__ import annotations

from functools import partial
from typing import Any, cast

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ttf.models.trunk import IMAGENET

HUGE = {"img_size": 224, "patch_size": 14, "embed_dim": 1280, "depth": 32, "num_heads": 16}
CROP = 0.875


def mae_vit(num_classes: int = 1000, **kwargs: Any) -> VisionTransformer:
    """The architecture of MAE's fine-tuned models in any size: qkv bias, ratio 4, LayerNorm eps 1e-6, average pool.

    Args:
        num_classes: outputs of the head.
        **kwargs: img_size, patch_size, embed_dim, depth, num_heads and others of timm's ``VisionTransformer``.
    """
    norm: Any = partial(nn.LayerNorm, eps=1e-6)
    model = VisionTransformer(num_classes=num_classes, global_pool="avg", fc_norm=True, norm_layer=norm, **kwargs)
    size = {"input_size": (3, *model.patch_embed.img_size), "crop_pct": CROP, "crop_mode": "center"}
    cast(Any, model).pretrained_cfg = {**IMAGENET, **size, "num_classes": num_classes}
    return model


def mae_vit_h14(num_classes: int = 1000, **kwargs: Any) -> VisionTransformer:
    """ViT-H/14: 632 M parameters, 167.4 GMACs, 86.9 top-1 (published)."""
    return mae_vit(num_classes, **{**HUGE, **kwargs})


def from_official(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """The state dict of an official fine-tuned file under timm's names, which are the same.

    Args:
        checkpoint: what the file holds, the state dict itself or one under "model".

    Raises:
        ValueError: it is no fine-tuned model with an average pool (a pre-trained one, or one that reads the class
            token).
    """
    state = checkpoint.get("model", checkpoint)
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    if any(name.startswith(("decoder", "mask_token")) for name in state) or "head.weight" not in state:
        raise ValueError("this is a pre-trained MAE, without a classifier: take mae_finetuned_vit_huge.pth")
    if "fc_norm.weight" not in state:
        raise ValueError("this model reads the class token (it has norm, not fc_norm): use timm's global_pool='token'")
    return state
