"""Token recovery: which transformed token stands in for each original one (Eq. 9), or which mix of them.

Shapes: B batch, N original tokens, M transformed tokens, C channels, P prefix tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ttf.ops.numerics import full_precision
from ttf.ops.reduction import behind_prefix


def relative_distances(x: Tensor, y: Tensor) -> Tensor:
    """||x_j - y_i||^2 - ||x_j||^2, for x (B, N, C) and y (B, M, C): (B, N, M) float32.

    What is left out is the same for all y_i: it changes neither their order nor a softmax over them.
    """
    with full_precision(x):
        old, new = x.float(), y.float()
        return new.square().sum(-1).unsqueeze(1) - 2 * old @ new.transpose(1, 2)


def nearest_token(x: Tensor, y: Tensor, prefix: int = 0, sizes: Tensor | None = None) -> Tensor:
    """I_j = argmin_i ||X_j - Y_i|| (Eq. 9); prefix tokens stand in for themselves.

    Args:
        x: (B, N, C) tokens before the transform.
        y: (B, M, C) tokens after it.
        prefix: number of prefix tokens P at the front of both.
        sizes: (B, M) float32, or None; a token of size 0 is padding and stands in for none.

    Returns:
        (B, N) int64, values in [0, M).
    """
    distances = relative_distances(x[:, prefix:], y[:, prefix:])
    if sizes is not None:
        distances = distances.masked_fill(sizes[:, None, prefix:] == 0, torch.inf)
    return behind_prefix(distances.argmin(-1), prefix)


def reconstruction_weights(x: Tensor, z: Tensor, temperature: float, neighbours: int | None = None) -> Tensor:
    """Hourglass's way back: exp(-T ||x_n - z_m||^2) for the nearest z of each x, rows divided by their L2 norm.

    Args:
        x: (B, N, C) tokens before the reduction.
        z: (B, M, C) tokens after it.
        temperature: T.
        neighbours: how many z a token is made of, more at exact ties; None: all.

    Returns:
        R (B, N, M) float32; its rows do not sum to 1.
    """
    logits = -temperature * relative_distances(x, z)
    if neighbours is not None and neighbours < z.shape[1]:
        last = logits.topk(neighbours, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < last, -torch.inf)
    # the norm takes any factor out of a row, and without the largest one exp cannot underflow in all of it
    return F.normalize((logits - logits.amax(-1, keepdim=True)).exp(), dim=-1)


def reconstruct(x: Tensor, z: Tensor, refined: Tensor, temperature: float, neighbours: int | None = None) -> Tensor:
    """Dense tokens (B, N, C) from refined ones (B, M, C), by ``reconstruction_weights`` of x and z."""
    weights = reconstruction_weights(x, z, temperature, neighbours)
    with full_precision(refined):
        return weights.to(refined.dtype) @ refined
