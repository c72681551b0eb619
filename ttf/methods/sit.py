"""SiT's token slimming (arXiv 2111.12624): a small network says how much of every patch token goes into a new one."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from ttf.methods.base import LayerView, Method
from ttf.ops.grid import beside_prefix
from ttf.ops.numerics import full_precision
from ttf.ops.reduction import MatrixReduction


def slimming_network(channels: int, hidden: int, tokens: int) -> nn.Sequential:
    """LayerNorm, Linear, GELU, Linear: (B, n, channels) to (B, n, tokens), freshly initialised."""
    return nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, tokens))


def slimming_weights(x: Tensor, network: nn.Module, scale: Tensor | float) -> Tensor:
    """softmax over the tokens of scale * network(x): (B, n, C) to (B, m, n) float32, rows sum to 1."""
    with full_precision(x):
        return (scale * network(x.float())).softmax(dim=1).transpose(1, 2)


@dataclass(frozen=True, eq=False)
class SiT(Method):
    """Every new token is a mean of the patch tokens, W as in ``slimming_weights``: rows sum to 1, not exclusive.

    Learned: there are P + m tokens for the m outputs of the network, whatever ``keep`` is. No sizes, later attention
    sees none.

    Attributes:
        network: (B, n, C) to (B, n, m), as of ``slimming_network``, in float32 and on the device of the model.
        scale: of the logits, a number or a learned tensor of one.
    """

    network: nn.Module
    scale: Tensor | float = 1.0

    @property
    def names_tokens(self) -> bool:
        return False

    def reduce(self, view: LayerView, keep: int) -> MatrixReduction:
        """See ``Method.reduce``; ``keep`` is not used."""
        weights = beside_prefix(slimming_weights(view.x[:, view.prefix :], self.network, self.scale), view.prefix)
        return MatrixReduction(sizes=weights.new_ones(weights.shape[:2]), weights=weights)
