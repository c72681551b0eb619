"""PatchMerger (arXiv 2202.12015): learned queries attend to the patch tokens."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from ttf.methods.base import LayerView, Method
from ttf.ops.grid import beside_prefix
from ttf.ops.numerics import full_precision
from ttf.ops.reduction import MatrixReduction

EPSILON = 1e-5  # of the LayerNorm


def query_attention(x: Tensor, queries: Tensor, scaled: bool, eps: float = EPSILON) -> Tensor:
    """softmax over the tokens of queries . LayerNorm(x): (B, n, C) and (m, C) to (B, m, n) float32, rows sum to 1."""
    with full_precision(x):
        logits = queries.float() @ F.layer_norm(x.float(), x.shape[2:], eps=eps).transpose(1, 2)
        return (logits * x.shape[2] ** -0.5 if scaled else logits).softmax(dim=-1)


def merge_patches(x: Tensor, queries: Tensor, scaled: bool, eps: float = EPSILON) -> Tensor:
    """The merged tokens of the paper, W LayerNorm(x) with W of ``query_attention``: (B, m, C) float32."""
    with full_precision(x):
        return query_attention(x, queries, scaled, eps) @ F.layer_norm(x.float(), x.shape[2:], eps=eps)


@dataclass(frozen=True, eq=False)
class PatchMerger(Method):
    """Every new token is a mean of the normalised patch tokens, by the attention A of one learned query.

    The paper's tokens are A LayerNorm(X) (``merge_patches``). LayerNorm divides by the deviation d_j of a token over
    its channels and takes off its mean; W_ij = A_ij / d_j does the first, and the second no later LayerNorm sees: the
    new tokens W X are the paper's plus the same number in all channels of a token. A's rows sum to 1, those of W to
    anything. Learned: there are P + m tokens for m queries, whatever ``keep`` is. No sizes, later attention sees none.

    Attributes:
        queries: (m, C), learned, on the device of the model.
        scaled: divide the logits by sqrt(C).
        eps: of the LayerNorm.

    Raises:
        ValueError: a value out of its range.
    """

    queries: Tensor
    scaled: bool = False
    eps: float = EPSILON

    def __post_init__(self) -> None:
        if self.queries.ndim != 2:
            raise ValueError(f"queries must be (m, C), got shape {tuple(self.queries.shape)}")
        if self.eps <= 0.0:
            raise ValueError(f"eps must be positive, got {self.eps}")

    @property
    def names_tokens(self) -> bool:
        return False

    def reduce(self, view: LayerView, keep: int) -> MatrixReduction:
        """See ``Method.reduce``; ``keep`` is not used."""
        patches = view.x[:, view.prefix :].float()
        deviation = (patches.var(dim=-1, correction=0) + self.eps).sqrt()
        attention = query_attention(patches, self.queries, self.scaled, self.eps)
        weights = beside_prefix(attention / deviation.unsqueeze(1), view.prefix)
        return MatrixReduction(sizes=weights.new_ones(weights.shape[:2]), weights=weights)
