"""TPS (arXiv 2304.10716) with class attention as its score (eTPS): prune, then squeeze the pruned tokens into hosts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ttf.methods.base import LayerView, Method
from ttf.ops.attention import Wanted
from ttf.ops.backends import learning
from ttf.ops.grid import beside_prefix
from ttf.ops.numerics import full_precision, norms, on_tensor_cores, products, recorded, transforming
from ttf.ops.reduction import MatrixReduction, behind_prefix, gather_tokens

NORM_EPSILON = 1e-6  # added to the norms of the features


def host_similarity(pruned: Tensor, reserved: Tensor, normalise: bool = True) -> Tensor:
    """Cosines, or plain dot products, of pruned (B, p, C) with reserved tokens (B, m, C): (B, p, m) float32."""
    with full_precision(pruned):
        if on_tensor_cores(pruned) and not (learning(pruned, reserved) or transforming() or recorded()):
            dots = products(pruned, reserved)
            if not normalise:
                return dots
            longer = [norms(x) + NORM_EPSILON for x in (pruned, reserved)]
            return dots / longer[0].unsqueeze(2) / longer[1].unsqueeze(1)
        pruned, reserved = pruned.float(), reserved.float()
        if normalise:
            pruned, reserved = (x / (x.norm(dim=-1, keepdim=True) + NORM_EPSILON) for x in (pruned, reserved))
        return pruned @ reserved.transpose(1, 2)


def squeezing_weights(similarity: Tensor, temperature: float = 1.0) -> Tensor:
    """Weights of the squeezing step for columns [reserved ..., pruned ...].

    y_i = (e x_i + sum over hosted j of exp(c_ij / T) x_j) / (e + sum of the same exp): a softmax over 1 and c_ij / T.

    Args:
        similarity: (B, p, m), pruned by reserved tokens; a pruned token goes to every host that ties for its highest.
        temperature: T.

    Returns:
        (B, m, m + p) float32, rows sum to 1.
    """
    hosted = similarity == similarity.amax(-1, keepdim=True)
    guests = (similarity / temperature).masked_fill(~hosted, -torch.inf).transpose(1, 2)
    others = ~torch.eye(similarity.shape[2], dtype=torch.bool, device=similarity.device)
    own = torch.ones_like(others, dtype=guests.dtype).masked_fill(others, -torch.inf)
    return torch.cat((own.expand(guests.shape[0], -1, -1), guests), dim=-1).softmax(-1)


def squeeze(
    scores: Tensor, x: Tensor, m: int, temperature: float = 1.0, normalise: bool = True
) -> tuple[Tensor, Tensor]:
    """Keep the m tokens with the highest scores, in descending order, and squeeze the others into them.

    Args:
        scores: (B, n).
        x: (B, n, C).
        m: number of tokens kept.
        temperature, normalise: see ``TPS``.

    Returns:
        W (B, m, n) float32, and the order (B, n) int64 of which the first m tokens are kept.
    """
    order = scores.argsort(dim=1, descending=True, stable=True)
    similarity = host_similarity(gather_tokens(x, order[:, m:]), gather_tokens(x, order[:, :m]), normalise)
    weights = squeezing_weights(similarity, temperature)
    return weights.gather(2, order.argsort(dim=1).unsqueeze(1).expand_as(weights)), order


@dataclass(frozen=True)
class TPS(Method):
    """W keeps the patch tokens with the highest class attention, in descending order, and adds the others to hosts.

    A pruned token j goes to the reserved token i of the highest cosine c_ij (to all of them at exact ties) with weight
    exp(c_ij / T), beside the host's own weight e. Rows sum to 1. No sizes, later attention sees none.

    Attributes:
        temperature: T > 0.
        normalise: cosines; else plain dot products.
    """

    temperature: float = 1.0
    normalise: bool = True

    def __post_init__(self) -> None:
        if not self.temperature > 0.0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")

    @property
    def wanted(self) -> Wanted:
        return Wanted("class")

    def reduce(self, view: LayerView, keep: int) -> MatrixReduction:
        """See ``Method.reduce``."""
        assert view.scores is not None
        prefix, m = view.prefix, keep - view.prefix
        options = (self.temperature, self.normalise)
        weights, order = squeeze(view.scores[:, prefix:], view.x[:, prefix:], m, *options)
        kept = behind_prefix(order[:, :m], prefix)
        sizes = weights.new_ones(weights.shape[0], keep)
        return MatrixReduction(sizes=sizes, kept=kept, weights=beside_prefix(weights, prefix))
