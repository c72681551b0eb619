"""Prune and Merge (arXiv 2503.23455): fixed matrices from a calibration pass, tokens short inside a block alone.

Shapes: B batch, H heads, N tokens, P prefix tokens, n = N - P patch tokens, M tokens inside the block.
``ttf.calibration`` runs the calibration pass; here is the mathematics from attention maps and gradients to matrices.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ttf.methods.base import LayerView, Method
from ttf.ops.reduction import LocalReduction

EPSILON = 1e-8  # as in the official code: keeps the division by a centre's score finite


@dataclass(frozen=True, eq=False)
class LayerMatrices:
    """The matrices of one block.

    Attributes:
        merge: (M, N) float32, W: identity rows of prefix tokens, then a row of neighbouring tokens for each centre.
        recover: (N, M) float32, the way back at the end of the block.
        mask: (N,) float32, 1 for tokens that go into the block, 0 for pruned ones, which go past it.
    """

    merge: Tensor
    recover: Tensor
    mask: Tensor

    def __post_init__(self) -> None:
        if self.merge.ndim != 2 or self.recover.shape != self.merge.shape[::-1]:
            shapes = f"{tuple(self.merge.shape)} and {tuple(self.recover.shape)}"
            raise ValueError(f"merge must be (M, N) and recover (N, M), got {shapes}")
        if self.mask.shape != self.merge.shape[1:]:
            raise ValueError(f"mask must have {self.merge.shape[1]} values, got shape {tuple(self.mask.shape)}")


def importance_of_maps(attention: Tensor, gradient: Tensor) -> Tensor:
    """What one batch says of every token: |sum over batch, head, query of gradient * A| / (B H N).

    Args:
        attention: (B, H, N, N) map.
        gradient: (B, H, N, N), of the loss with respect to the map.

    Returns:
        (N,) float32, prefix tokens included; batches add up.
    """
    batch, heads, tokens = attention.shape[:3]
    return (gradient.float() * attention.float()).sum(dim=(0, 1, 2)).abs() / (batch * heads * tokens)


def layer_ranks(maps: Iterable[tuple[Tensor, Tensor]], prefix: int = 1) -> Tensor:
    """Importance of the patch tokens of one layer over pairs (attention, gradient), one a batch: (n,) float32."""
    return torch.stack([importance_of_maps(*pair) for pair in maps]).sum(dim=0)[prefix:]


def normalised_ranks(ranks: Tensor, layer: int, decay: float = 0.025) -> Tensor:
    """Ranks (n,) of a layer with L2 norm 1 - decay * layer, so that layers compare and late ones keep fewer tokens."""
    norm = float(ranks.norm())
    if not 0 < norm < math.inf:
        raise ValueError(f"the importance of the tokens of block {layer} is all zero or not finite: check the images")
    return ranks / ranks.norm() * (1 - decay * layer)


def thresholds(ranks: Iterable[Tensor], keep_rate: float = 0.6, prune_rate: float = 0.1) -> tuple[Tensor, Tensor]:
    """One pair of thresholds for all layers together.

    Args:
        ranks: normalised ranks, (n,) of every layer that merges.
        keep_rate: share of patch tokens that become centres, mean over the layers; at least one token a layer.
        prune_rate: share that is pruned.

    Returns:
        Two scalars: tokens below the first are pruned, tokens at or above the second are centres.
    """
    rows = torch.stack(list(ranks))
    layers, n = rows.shape
    pruned, kept = int(n * prune_rate), int(n * keep_rate)
    if not 0 <= pruned < n or not 0 < kept <= n:
        raise ValueError(
            f"keep_rate in (0, 1] and prune_rate in [0, 1) must leave tokens of {n}: {keep_rate}, {prune_rate}"
        )
    pooled = rows.flatten().sort().values
    return pooled[pruned * layers], pooled[-kept * layers]


def group_ends(centres: Tensor, columns: int) -> Tensor:
    """Where the groups of all centres but the last end, which is where the next begin.

    A group ends half-way to the next centre. Where that is in a later row of patches than the token behind the centre,
    it ends with that token's row.

    Args:
        centres: (K,) int64, ascending positions of patches.
        columns: of the grid of patches.

    Returns:
        (K - 1,) int64, the first patch behind each group.
    """
    here, following = centres[:-1], centres[1:]
    middle = (here + following + 1) // 2
    row = (here + 1) // columns
    return torch.where(row < middle // columns, (row + 1) * columns, middle)


def merge_matrix(score: Tensor, centre: Tensor, columns: int, prefix: int = 1) -> Tensor:
    """W of one layer.

    Args:
        score: (n,) float32, rank of every patch, 0 for pruned ones.
        centre: (n,) bool, which patches are centres.
        columns: of the grid of patches.
        prefix: number of prefix tokens P, which get identity rows.

    Returns:
        (P + K, P + n) float32: score_j / score_centre on each centre's group; 1 at the centre, rows not normalised.
    """
    centres = centre.nonzero().flatten()
    position = torch.arange(len(score), device=score.device)
    group = torch.searchsorted(group_ends(centres, columns), position, right=True)
    weight = score / (score[centres][group] + EPSILON)
    out = score.new_zeros(prefix + len(centres), prefix + len(score))
    out[:prefix, :prefix] = torch.eye(prefix, device=score.device)
    out[prefix + group, prefix + position] = weight
    return out


def merge_size_bias(merge: Tensor) -> Tensor:
    """log of the square root of the row sums of W (M, N): (M,). Part of the official state, which no layer uses."""
    return merge.sum(dim=1).sqrt().log()


def layer_matrices(rank: Tensor, limits: tuple[Tensor, Tensor], columns: int, prefix: int = 1) -> LayerMatrices:
    """The matrices of a layer from its normalised ranks (n,) and the thresholds of all layers.

    The way back is the pseudo-inverse. A layer without any centre keeps its strongest token as one.
    """
    mask = (rank >= limits[0]).to(rank.dtype)
    score = rank * mask
    centre = score >= limits[1]
    if not centre.any():
        centre = torch.arange(len(rank), device=rank.device) == score.argmax()
    merge = merge_matrix(score, centre, columns, prefix)
    return LayerMatrices(merge, torch.linalg.pinv(merge), torch.cat((mask.new_ones(prefix), mask)))


def matrices(
    ranks: Mapping[int, Tensor],
    columns: int,
    prefix: int = 1,
    keep_rate: float = 0.6,
    prune_rate: float = 0.1,
    decay: float = 0.025,
) -> dict[int, LayerMatrices]:
    """The matrices of all layers that merge.

    Args:
        ranks: block -> importance (n,) of its patch tokens, see ``layer_ranks``.
        columns: of the grid of patches.
        prefix: number of prefix tokens P.
        keep_rate: share of patch tokens that become centres, mean over the layers.
        prune_rate: share that is pruned.
        decay: how much less each layer's ranks count than those of the one before.
    """
    normalised = {block: normalised_ranks(rank, block, decay) for block, rank in ranks.items()}
    limits = thresholds(normalised.values(), keep_rate, prune_rate)
    return {block: layer_matrices(rank, limits, columns, prefix) for block, rank in normalised.items()}


@dataclass(frozen=True, eq=False)
class PruneAndMerge(Method):
    """W is the same for all images: groups of patches in reading order, each merged into its centre.

    Tokens are reduced at the start of a block and back at its end: x becomes R block(W x) + (1 - mask) x. Rows hold
    score_j / score_centre on the group, 1 at the centre, and are not normalised; a patch is in one row at most, pruned
    ones are in none. The matrices fix the number of tokens: ``keep`` is ignored. No sizes, attention sees none.

    Attributes:
        layers: block -> matrices, as ``ttf.calibration.calibrate`` makes them.
    """

    layers: Mapping[int, LayerMatrices] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if not self.layers:
            raise ValueError("PruneAndMerge needs matrices of every block it reduces at: see ttf.calibration.calibrate")

    @property
    def around(self) -> bool:
        return True

    @property
    def blocks(self) -> tuple[int, ...]:
        """The calibrated blocks, in ascending order; the ``blocks`` of ``ttf.apply``."""
        return tuple(sorted(self.layers))

    def _layer(self, block: int, tokens: int) -> LayerMatrices:
        if block not in self.layers:
            raise ValueError(f"block {block} is not calibrated: pass blocks={self.blocks} or some of them")
        layer = self.layers[block]
        if layer.merge.shape[1] != tokens:
            raise ValueError(f"block {block} was calibrated on {layer.merge.shape[1]} tokens, and now has {tokens}")
        return layer

    @property
    def names_tokens(self) -> bool:
        return False

    def reduce(self, view: LayerView, keep: int) -> LocalReduction:
        """See ``Method.reduce``."""
        batch, tokens, _ = view.x.shape
        layer, device = self._layer(view.block, tokens), view.x.device
        weights = layer.merge.to(device).expand(batch, -1, -1)
        back = layer.recover.to(device).expand(batch, -1, -1)
        passed = (1 - layer.mask.to(device)).expand(batch, -1)
        return LocalReduction(sizes=torch.ones_like(weights[:, :, 0]), weights=weights, back=back, passed=passed)
