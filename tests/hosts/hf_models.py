"""Small models of transformers, and a run of them by hand, for the tests of these hosts."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ttf
from ttf.core.entry import blocks_of
from ttf.methods import LayerView

WIDE = {"hidden_size": 48, "num_hidden_layers": 6, "num_attention_heads": 3, "image_size": 32, "patch_size": 4}
VISION = {**WIDE, "intermediate_size": 96}
TEXT = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 3, "vocab_size": 50}
WORDS = {**TEXT, "bos_token_id": 48, "eos_token_id": 49, "pad_token_id": 1}
BOTH = {"vision_config": VISION, "text_config": WORDS}
DINO = {**WIDE, "mlp_ratio": 2, "layerscale_value": 0.7}
ENCODERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "clip": ("CLIPVisionModel", "CLIPVisionConfig", VISION),
    "siglip": ("SiglipVisionModel", "SiglipVisionConfig", VISION),
    "vit": ("ViTModel", "ViTConfig", VISION),
    "deit": ("DeiTModel", "DeiTConfig", VISION),
    "dinov2": ("Dinov2Model", "Dinov2Config", DINO),
    "dinov2, swiglu": ("Dinov2Model", "Dinov2Config", {**DINO, "use_swiglu_ffn": True}),
    "dinov2, registers": ("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", DINO),
    "dinov3": ("DINOv3ViTModel", "DINOv3ViTConfig", {**VISION, "num_register_tokens": 4, "layerscale_value": 0.7}),
    "dinov3, gated": ("DINOv3ViTModel", "DINOv3ViTConfig", {**VISION, "use_gated_mlp": True}),
}
CLASSIFIERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "vit": ("ViTForImageClassification", "ViTConfig", VISION),
    "deit": ("DeiTForImageClassification", "DeiTConfig", VISION),
    "deit, teacher": ("DeiTForImageClassificationWithTeacher", "DeiTConfig", VISION),
    "dinov2": ("Dinov2ForImageClassification", "Dinov2Config", DINO),
    "dinov2, registers": ("Dinov2WithRegistersForImageClassification", "Dinov2WithRegistersConfig", DINO),
    "clip": ("CLIPForImageClassification", "CLIPConfig", BOTH),
    "siglip": ("SiglipForImageClassification", "SiglipConfig", BOTH),
}
MODELS = {
    **{f"{name}, encoder": kind for name, kind in ENCODERS.items()},
    **{f"{name}, classifier": kind for name, kind in CLASSIFIERS.items()},
    "clip, projection": ("CLIPVisionModelWithProjection", "CLIPVisionConfig", VISION),
    "siglip, no head": ("SiglipVisionModel", "SiglipVisionConfig", {**VISION, "vision_use_head": False}),
}
CLIP, DINOV3, SIGLIP = ENCODERS["clip"], ENCODERS["dinov3"], ENCODERS["siglip"]
SOFT = {"tau": 10.0, "ratio": 0.5}  # tau = 150 would multiply the rounding by which two ways of computing differ
CLOSE = {"atol": 1e-4, "rtol": 1e-4}

Images = Callable[..., Tensor]
Build = Callable[..., Any]


def builder(stir: Callable[[nn.Module], nn.Module]) -> Build:
    """Maker of small random models of (class, configuration, fields), fields changed by name."""
    transformers: Any = pytest.importorskip("transformers", reason="needs transformers: pip install 'ttf[hf]'")

    def make(kind: tuple[str, str, dict[str, Any]], attention: str = "sdpa", **changes: Any) -> Any:
        name, config, fields = kind
        torch.manual_seed(0)
        settings = getattr(transformers, config)(**{**copy.deepcopy(fields), **changes})
        return stir(getattr(transformers, name)._from_config(settings, attn_implementation=attention))

    return make


def all_tensors(out: Any) -> list[Tensor]:
    """All tensors of an output, in order."""
    if isinstance(out, Tensor):
        return [out]
    parts = out.values() if hasattr(out, "values") else out if isinstance(out, tuple | list) else ()
    return [tensor for part in parts for tensor in all_tensors(part)]


def same_tensors(a: Any, b: Any) -> bool:
    first, second = all_tensors(a), all_tensors(b)
    return len(first) == len(second) > 0 and all(torch.equal(p, q) for p, q in zip(first, second, strict=True))


def encoder_of(model: nn.Module) -> Any:
    return ttf.hosts.find(model).runs(model)


def weighted_mean(x: Tensor, sizes: Tensor) -> Tensor:
    return (x * sizes.unsqueeze(-1)).sum(1) / sizes.sum(1, keepdim=True)


def linear(layer: nn.Module, *names: str) -> nn.Module:
    (found,) = [m for path, m in layer.named_modules() if path.endswith(names) and isinstance(m, nn.Linear)]
    return found


def place_rotation(x: Tensor, rotation: tuple[Tensor, Tensor], places: Tensor) -> Tensor:
    """Queries or keys (B, H, N, D), the patches at ``places`` (B, n) rotated."""
    prefix, half = x.shape[2] - places.shape[1], x.shape[3] // 2
    cos, sin = (part[places].unsqueeze(1) for part in rotation)
    patches = x[:, :, prefix:]
    turned = torch.cat((-patches[..., half:], patches[..., :half]), dim=-1)
    return torch.cat((x[:, :, :prefix], patches * cos + turned * sin), dim=2)


def attention_by_hand(
    layer: nn.Module, x: Tensor, sizes: Tensor, rotation: tuple[Tensor, Tensor] | None, places: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Output (Eq. 7), column sums of the map (Eq. 2) and mean keys, with an explicit softmax."""
    parts = (linear(layer, *names)(x) for names in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value")))
    q, k, v = (part.unflatten(2, (3, 16)).transpose(1, 2) for part in parts)
    if rotation is not None:
        q, k = (place_rotation(part, rotation, places) for part in (q, k))
    weights = sizes[:, None, None] * torch.exp(q @ k.transpose(2, 3) / 4)
    attention = weights / weights.sum(-1, keepdim=True)
    out = linear(layer, "out_proj", "o_proj", "attention.output.dense")((attention @ v).transpose(1, 2).flatten(2))
    return out, attention.mean(1).sum(1), k.mean(1)


def feed_forward_by_hand(layer: Any, normed: Tensor) -> Tensor:
    if hasattr(layer, "mlp"):
        return layer.mlp(normed)
    return layer.output.dense(layer.intermediate(normed))


def scale(layer: Any, number: int) -> Any:
    return getattr(layer, f"layer_scale{number}").lambda1 if hasattr(layer, "layer_scale1") else 1.0


def run_by_hand(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens and sizes behind the layers of a compressed model, layer by layer."""
    plan, encoder = ttf.plan(model), encoder_of(model)
    x = encoder.embeddings(images)
    x = encoder.pre_layrnorm(x) if hasattr(encoder, "pre_layrnorm") else x
    rotation = encoder.rope_embeddings(images) if hasattr(encoder, "rope_embeddings") else None
    sizes, prefix = torch.ones(x.shape[:2]), plan.prefix
    places = torch.arange(x.shape[1] - prefix).expand(len(x), -1)
    for number, layer in enumerate(blocks_of(model, plan.host)):
        norm1, norm2 = (module for module in layer.modules() if isinstance(module, nn.LayerNorm))
        out, scores, keys = attention_by_hand(layer, norm1(x), sizes, rotation, places)
        x = x + scale(layer, 1) * out
        keep = prefix + plan.schedule.kept(number, x.shape[1] - prefix)
        if keep < x.shape[1]:
            reduction = plan.method.reduce(LayerView(x, prefix, sizes, scores, keys, norm2(x)), keep)
            x, sizes = reduction.matrix() @ x, reduction.sizes
            places = places.gather(1, reduction.kept[:, prefix:] - prefix)
        x = x + scale(layer, 2) * feed_forward_by_hand(layer, norm2(x))
    return x, sizes


def last_norm(encoder: Any) -> Any:
    names = ("layernorm", "norm") if not hasattr(encoder, "pre_layrnorm") else ()
    names = ("post_layernorm",) if "Siglip" in type(encoder).__name__ else names
    return next((getattr(encoder, name) for name in names if hasattr(encoder, name)), nn.Identity())
