"""Significance of the patch tokens: class attention times the norm of the value (ATS, PPT).

Shapes: B batch, N tokens, P prefix tokens. Imports torch alone.
"""

from __future__ import annotations

from torch import Tensor


def value_weighted_scores(class_row: Tensor, value_norms: Tensor, prefix: int) -> Tensor:
    """S_j = A[class, j] ||v_j|| / sum over the patches of the same.

    Args:
        class_row: (B, N), the class token's row of the attention map; its scale does not matter.
        value_norms: (B, N), L2 norms of the values, all heads together.
        prefix: number of prefix tokens P, which have no score.

    Returns:
        (B, N - P) float32, every row sums to 1.
    """
    raw = (class_row.float() * value_norms.float())[:, prefix:]
    return raw / raw.sum(dim=1, keepdim=True)
