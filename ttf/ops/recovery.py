"""Token recovery (Eq. 9): which transformed token stands in for each original one.

Shapes: B batch, N original tokens, M transformed tokens, C channels, P prefix tokens.
"""

from __future__ import annotations

from torch import Tensor

from ttf.ops.numerics import full_precision
from ttf.ops.reduction import behind_prefix


def nearest_token(x: Tensor, y: Tensor, prefix: int = 0) -> Tensor:
    """I_j = argmin_i ||X_j - Y_i|| (Eq. 9); prefix tokens stand in for themselves.

    Args:
        x: (B, N, C) tokens before the transform.
        y: (B, M, C) tokens after it.
        prefix: number of prefix tokens P at the front of both.

    Returns:
        (B, N) int64, values in [0, M).
    """
    with full_precision(x):
        patches, targets = x[:, prefix:].float(), y[:, prefix:].float()
        # ||x - y||^2 = ||x||^2 - 2 x.y + ||y||^2, and ||x||^2 does not change the order
        distances = targets.square().sum(-1).unsqueeze(1) - 2 * patches @ targets.transpose(1, 2)
    return behind_prefix(distances.argmin(-1), prefix)
