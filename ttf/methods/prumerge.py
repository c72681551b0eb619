"""PruMerge and PruMerge+ (arXiv 2403.15388): keep attentive patches, add to each the tokens with the nearest keys.

Shapes: B batch, N tokens, P prefix tokens, n = N - P patch tokens, K kept patch tokens, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ttf.methods.base import LayerView, Method
from ttf.ops.attention import Wanted, size_bias
from ttf.ops.numerics import full_precision, has_values
from ttf.ops.reduction import MatrixReduction, behind_prefix, gather_tokens, one_hot


def class_attention(query: Tensor, keys: Tensor, prefix: int = 1, sizes: Tensor | None = None) -> Tensor:
    """The class token's attention to the patches, heads taken as one: softmax(q k^T / sqrt(C)) over all N tokens.

    Args:
        query: (B, C) of the class token.
        keys: (B, N, C).
        prefix: number of prefix tokens P, which the softmax sees and the result leaves out.
        sizes: (B, N) where they enter as log s (0: padding, never attended to), or None.

    Returns:
        (B, n) float32.
    """
    with full_precision(keys):
        logits = (query.float().unsqueeze(1) @ keys.float().transpose(1, 2)) * keys.shape[-1] ** -0.5
    bias = size_bias(sizes, logits.dtype)
    logits = logits if bias is None else logits + bias[:, 0]
    return logits.softmax(dim=-1).squeeze(1)[:, prefix:]


def outlier_ratio(attention: Tensor) -> float:
    """Share of the entries of ``attention``, any shape, above Q3 + 1.5 (Q3 - Q1); quartiles by linear interpolation.

    Raises:
        ValueError: there are no values to count (under torch.func, on the meta device).
    """
    if not torch.compiler.is_compiling() and not has_values(attention):
        raise ValueError("outliers=True counts tokens by their values, and here are none: use outliers=False")
    low, high = torch.quantile(attention.float().flatten(), attention.new_tensor([0.25, 0.75], dtype=torch.float32))
    return int((attention > high + 1.5 * (high - low)).sum()) / attention.numel()


def grid_positions(n: int, ratio: float, outliers: bool) -> range:
    """Positions that PruMerge+ adds, below n - 1: every ``int(1 / ratio)``-th one, for outliers three times as many.

    Args:
        n: number of patch tokens.
        ratio: share of the patch tokens that attention keeps; 0 adds none.
        outliers: the ratio is that of outliers; the positions then start at 0, and not at half a step.
    """
    if ratio <= 0:
        return range(0)
    step = int(1 / ratio)
    return range(0, n - 1, max(1, step // 3)) if outliers else range(step // 2, n - 1, step)


def attentive_count(n: int, budget: int, outliers: bool) -> int:
    """The largest K of attention's choice that fits in ``budget`` tokens together with the grid positions it brings."""
    low, high = 0, budget
    while low < high:  # the total never falls as K grows
        middle = (low + high + 1) // 2
        fits = middle + len(grid_positions(n, middle / n, outliers)) <= budget
        low, high = (middle, high) if fits else (low, middle - 1)
    return low


def kept_positions(attention: Tensor, count: int, grid: range) -> Tensor:
    """The ``count`` most attended patches in descending order, then the positions of ``grid``: (B, K), repeats stay."""
    order = attention.argsort(dim=1, descending=True, stable=True)[:, :count]
    added = torch.arange(grid.start, grid.stop, grid.step, device=order.device)
    return torch.cat((order, added.expand(len(order), -1)), dim=1)


def first_mentions(kept: Tensor) -> Tensor:
    """Where ``kept`` (B, K) names a position for the first time: (B, K) bool."""
    same = kept.unsqueeze(2) == kept.unsqueeze(1)
    return ~same.tril(-1).any(dim=2)


def without_repeats(kept: Tensor, live: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """``kept`` (B, K) without entries that repeat in all images of the batch, and where what is left counts.

    Args:
        kept: (B, K) positions.
        live: (B, n) bool, patches that are no padding; None: all.

    Returns:
        (B, K') positions, and (B, K') bool: False for repeats and padding, which are in the list of some image only.
    """
    listed = first_mentions(kept)
    listed = listed if live is None else listed & live.gather(1, kept)
    used = listed.any(dim=0)
    return kept[:, used], listed[:, used]


def dropped_mask(kept: Tensor, n: int, listed: Tensor | None = None) -> Tensor:
    """The patches that are merged and not kept, (B, n) bool.

    With d repeats in ``kept``, d patches are in neither set, those at the smallest positions that are not kept: so
    does the official code, whose two lists are n long together.

    Args:
        kept: (B, K) positions.
        n: number of patch tokens.
        listed: (B, K) bool, which entries of ``kept`` count; None: all.
    """
    outside = torch.ones(len(kept), n, dtype=torch.bool, device=kept.device).scatter(1, kept, False)
    first = first_mentions(kept)
    repeats = (~first if listed is None else listed & ~first).sum(1, keepdim=True)
    return outside & (outside.cumsum(1) > repeats)


def merge_weights(
    attention: Tensor, keys: Tensor, kept: Tensor, dropped: Tensor, neighbours: int = 32, listed: Tensor | None = None
) -> Tensor:
    """W of the patches: y_i = x_i + sum of a_j x_j over the nearest others of i, and one token for all that is dropped.

    Args:
        attention: (B, n), a.
        keys: (B, n, C); nearness is their cosine.
        kept: (B, K) positions, which may repeat: entries of the list are neighbours of each other, repeats too.
        dropped: (B, n) bool.
        neighbours: how many others each kept token takes, kept or dropped; fewer where there are not so many.
        listed: (B, K) bool, which entries of ``kept`` count, the others' rows are 0; None: all.

    Returns:
        (B, K + 1, n) float32, not normalised.
    """
    count, n = kept.shape[1], attention.shape[1]
    listed = torch.ones_like(kept, dtype=torch.bool) if listed is None else listed
    unit = F.normalize(keys.float(), dim=-1)
    chosen = gather_tokens(unit, kept)
    with full_precision(keys):
        cosine = chosen @ torch.cat((chosen, unit), dim=1).transpose(1, 2)
    # candidates: the entries of the list, then every patch; no entry is its own neighbour
    others = listed.unsqueeze(1) & ~torch.eye(count, dtype=torch.bool, device=kept.device)
    allowed = torch.cat((others, dropped.unsqueeze(1).expand(-1, count, -1)), dim=2)
    nearest = cosine.masked_fill(~allowed, -torch.inf).topk(min(neighbours, count + n), dim=2).indices
    taken = torch.zeros_like(allowed).scatter(2, nearest, True) & allowed
    weight = taken * torch.cat((attention.gather(1, kept), attention), dim=1).unsqueeze(1)
    columns = kept.unsqueeze(1).expand(-1, count, -1)
    rows = one_hot(kept, n) + weight[:, :, count:].scatter_add(2, columns, weight[:, :, :count])
    return torch.cat((rows * listed.unsqueeze(2), (attention * dropped).unsqueeze(1)), dim=1)


@dataclass(frozen=True)
class PruMerge(Method):
    """W keeps patches in descending order of class attention a, each plus a_j of its nearest others; one more row at
    the end holds a_j on all dropped patches.

    Many-to-many, rows not normalised: those of kept tokens sum to more than 1, the last to less. No sizes.

    How many tokens come out: exactly ``keep`` of the plain variant, the extra token counted. ``plus`` adds grid
    positions, and takes the largest share of attentive tokens with which all fits in ``keep``: at most ``keep`` tokens,
    some of which may be there twice (so defined). ``outliers`` ignores the ratio and keeps what stands out in the whole
    batch, again no more than ``keep``, so that the result depends on the batch. Both together skip grid positions
    that attention chose already, and images of one batch then differ in number: the spare tokens have size 0, are
    0 themselves, and later layers do not attend to them.

    The official code fixes n = 576; grid positions are below n - 1 here.

    Attributes:
        plus: PruMerge+, with a grid of positions on top.
        outliers: keep outliers of the class attention (above Q3 + 1.5 IQR) and no fixed share.
        neighbours: tokens that are added to each kept one.
    """

    plus: bool = False
    outliers: bool = False
    neighbours: int = 32

    def __post_init__(self) -> None:
        if self.neighbours < 1:
            raise ValueError(f"neighbours is a number of tokens and must be at least 1, got {self.neighbours}")

    @property
    def wanted(self) -> Wanted:
        return Wanted(projections=True)

    @property
    def scaling(self) -> bool:
        return self.plus and self.outliers

    @property
    def adaptive(self) -> bool:
        return self.outliers

    def _kept(self, attention: Tensor, budget: int, live: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Positions (B, K) with K <= ``budget``, and which of them count, (B, K), or None for all."""
        n = attention.shape[1]
        count = attentive_count(n, budget, self.outliers) if self.plus else budget
        ratio = count / n
        if self.outliers:
            ratio = min(ratio, outlier_ratio(attention if live is None else attention[live]))
            count = min(count, int(n * ratio))
        grid = grid_positions(n, ratio, self.outliers) if self.plus else range(0)
        kept = kept_positions(attention, count, grid)
        return without_repeats(kept, live) if self.scaling else (kept, None)

    @property
    def names_tokens(self) -> bool:
        return False

    def reduce(self, view: LayerView, keep: int) -> MatrixReduction:
        """See ``Method.reduce``."""
        assert view.class_query is not None and view.flat_keys is not None
        prefix, n = view.prefix, view.x.shape[1] - view.prefix
        sizes = view.sizes if self.scaling else None
        live = None if sizes is None else sizes[:, prefix:] > 0
        attention = class_attention(view.class_query, view.flat_keys, prefix, sizes)
        kept, listed = self._kept(attention, keep - prefix - 1, live)
        dropped = dropped_mask(kept, n, listed)
        patches = merge_weights(attention, view.flat_keys[:, prefix:], kept, dropped, self.neighbours, listed)
        weights = F.pad(patches, (prefix, 0, prefix, 0))
        weights[:, :prefix, :prefix] = torch.eye(prefix, device=weights.device)
        out = torch.ones_like(weights[:, :, 0])
        if listed is not None:
            out[:, prefix:-1] = listed.float()
        return MatrixReduction(sizes=out, kept=behind_prefix(kept, prefix), weights=weights)
