"""Multiply-accumulates of a real forward pass, and parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, flop_registry, sdpa_flop_count

from ttf.core.host import check_module

NORM_OPERATIONS = 5  # mean, centre, square, scale, shift
CPU_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def _cpu_attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _pairwise_distances(a: Any, b: Any, *_: Any, **__: Any) -> int:
    """torch.cdist of shapes (..., n, C) and (..., m, C): a matrix product at heart."""
    return 2 * math.prod(a) * b[-2]


# what torch's counter leaves out: distances always, its own fused attention on the CPU in torch 2.10
UNCOUNTED = {
    torch.ops.aten._cdist_forward: _pairwise_distances,  # few points
    torch.ops.aten._euclidean_dist: _pairwise_distances,  # many points
    CPU_ATTENTION: _cpu_attention,
}
UNCOUNTED = {operator: formula for operator, formula in UNCOUNTED.items() if operator not in flop_registry}


@torch.no_grad()
def gmacs(model: nn.Module, shape: Sequence[int], image: Tensor | None = None) -> float:
    """Multiply-accumulates / 1e9 of one forward pass: the paper's GFLOPs.

    Counts what runs, by torch's own operator-level counter: matrix products, convolutions and attention (fused or
    not), those of the token transform included; element-wise work, norms and softmax are not counted.

    Args:
        model: in any mode; run once in evaluation mode.
        shape: of the input, (3, H, W) for one image or (B, 3, H, W).
        image: of that shape, for models whose cost depends on the image; None: zeros.

    Returns:
        For the whole input, so per image where B is 1 or not given.

    Raises:
        ValueError: the shape has neither 3 nor 4 whole numbers, or the model is none.
    """
    whole = isinstance(shape, Sequence) and all(isinstance(side, Integral) and side > 0 for side in shape)
    if not whole or len(shape) not in (3, 4):
        got = shape if isinstance(shape, list | tuple) else type(shape).__name__
        raise ValueError(f"shape must be (3, H, W) or (B, 3, H, W), got {got}")
    check_module(model)
    full = (1, *shape) if len(shape) == 3 else tuple(shape)
    like = next(model.parameters())
    images = torch.zeros(full) if image is None else image.reshape(full)
    modes = {module: module.training for module in model.modules()}
    counter = FlopCounterMode(display=False, custom_mapping=UNCOUNTED)
    try:
        with counter:
            model.eval()  # mmdet's Swin returns nothing of it
            model(images.to(like.device, like.dtype))
    finally:
        for module, training in modes.items():
            module.training = training
    return counter.get_total_flops() / 2e9


@torch.no_grad()
def norm_gops(model: nn.Module, images: Tensor) -> float:
    """What fvcore adds to the multiply-accumulates for LayerNorm: five operations a value, in 1e9.

    Some published GMACs include them (167.4 of ViT-H/14, of which 0.1 are norms); those of ``gmacs`` do not.

    Args:
        model: in evaluation mode.
        images: (B, 3, H, W).
    """
    values: list[int] = []
    norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
    handles = [norm.register_forward_hook(lambda _, __, out: values.append(out.numel())) for norm in norms]
    try:
        model(images)
    finally:
        for handle in handles:
            handle.remove()
    return NORM_OPERATIONS * sum(values) / 1e9


def params_m(model: nn.Module) -> float:
    """Parameters in millions."""
    return sum(p.numel() for p in model.parameters()) / 1e6
