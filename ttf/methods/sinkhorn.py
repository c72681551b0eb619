"""Sinkhorn (as in the comparison arXiv 2308.04657): optimal transport of the patch tokens to learned centres."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ttf.methods.base import LayerView, Method
from ttf.ops.grid import beside_prefix
from ttf.ops.numerics import full_precision
from ttf.ops.reduction import MatrixReduction


def transport(scores: Tensor, eps: float, iterations: int) -> Tensor:
    """Entropic optimal transport with marginals of 1 on both sides, in the log domain.

    Rows, then columns of exp(scores / eps) are scaled in turn. With m != n both marginals cannot hold: columns, the
    last, sum to 1, and rows to n / m.

    Args:
        scores: (B, m, n).
        eps: regularisation.
        iterations: of rows, then columns.

    Returns:
        (B, m, n) float32.
    """
    logits = scores.float() / eps
    target = -math.log(scores.shape[1] + scores.shape[2])
    columns = torch.zeros_like(logits[:, :1])
    rows = torch.zeros_like(logits[:, :, :1])
    for _ in range(iterations):
        rows = target - (logits + columns).logsumexp(dim=2, keepdim=True)
        columns = target - (logits + rows).logsumexp(dim=1, keepdim=True)
    return (logits + rows + columns - target).exp()


def transport_to(x: Tensor, centers: Tensor, eps: float, iterations: int) -> Tensor:
    """Transport of the L2-normalised tokens x (B, n, C) to the L2-normalised centres (m, C): (B, m, n) float32."""
    with full_precision(x):
        scores = F.normalize(centers.float(), dim=-1) @ F.normalize(x.float(), dim=-1).transpose(1, 2)
        return transport(scores, eps, iterations)


@dataclass(frozen=True, eq=False)
class Sinkhorn(Method):
    """New tokens are the transport T of ``transport_to`` times the L2-normalised patch tokens.

    W_ij = T_ij / ||x_j||, which makes that Y = W X. T's rows sum to n / m (n patch tokens), those of W to anything.
    Learned: there are P + m tokens for the m centres, whatever ``keep`` is. No sizes, later attention sees none.

    Attributes:
        centers: (m, C), learned, on the device of the model.
        eps: regularisation of the transport, > 0.
        iterations: of the transport, >= 1.

    Raises:
        ValueError: a value out of its range.
    """

    centers: Tensor
    eps: float = 1.0
    iterations: int = 3

    def __post_init__(self) -> None:
        if self.centers.ndim != 2:
            raise ValueError(f"centers must be (m, C), got shape {tuple(self.centers.shape)}")
        if not 0.0 < self.eps < math.inf:
            raise ValueError(f"eps must be positive and finite, got {self.eps}")
        if self.iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {self.iterations}")

    @property
    def names_tokens(self) -> bool:
        return False

    def reduce(self, view: LayerView, keep: int) -> MatrixReduction:
        """See ``Method.reduce``; ``keep`` is not used."""
        patches = view.x[:, view.prefix :]
        lengths = patches.float().norm(dim=-1).clamp_min(1e-12)  # as F.normalize does
        plan = transport_to(patches, self.centers, self.eps, self.iterations)
        weights = beside_prefix(plan / lengths.unsqueeze(1), view.prefix)
        return MatrixReduction(sizes=weights.new_ones(weights.shape[:2]), weights=weights)
