"""``Reduction``: what every token-reduction method returns, Y = W X (Eq. 1) and the way back.

Shapes: B batch, N tokens in, M tokens out, C channels, P prefix tokens (class, distillation, registers).
Imports torch alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ttf.ops.numerics import full_precision, on_tensor_cores

MANY = 1024  # tokens; beyond, W of an exclusive reduction takes longer than sums over its groups
RECOVERIES = ("nearest", "transpose")
Recovery = Literal["nearest", "transpose"]


def gather_tokens(x: Tensor, index: Tensor) -> Tensor:
    """Rows ``index`` (B, K) of the tokens x (B, N, C): (B, K, C)."""
    # whole rows at a time; torch.gather looks up every channel, which takes two to three times as long on a CPU
    return x[torch.arange(x.shape[0], device=x.device).unsqueeze(1), index]


def behind_prefix(index: Tensor, prefix: int) -> Tensor:
    """Indices that count from behind the prefix, (B, K), as indices of all tokens with the prefix tokens in front.

    Returns:
        (B, P + K) int64.
    """
    if prefix == 0:
        return index
    own = torch.arange(prefix, device=index.device).expand(index.shape[0], prefix)
    return torch.cat((own, index + prefix), dim=1)


def one_hot(index: Tensor, length: int) -> Tensor:
    """Indices (B, K) as rows of one 1 each, (B, K, length) float32; unlike torch's it looks at no value."""
    return (index.unsqueeze(-1) == torch.arange(length, device=index.device)).float()


@dataclass(frozen=True, kw_only=True)
class Reduction(ABC):
    """A transformation matrix W (B, M, N), in whatever form applies it fastest.

    Attributes:
        sizes: (B, M) float32, how many original tokens each new token stands for (Eq. 8).
        kept: (B, M) int64, the token that each new token grew from, or None where there is none such.
        nearest: (B, N) int64, the new token that stands in for each old one (Eq. 9), or None.
        grid: (rows, columns) of the new patch tokens, or None where they lie on no grid.
    """

    sizes: Tensor
    kept: Tensor | None = None
    nearest: Tensor | None = None
    grid: tuple[int, int] | None = None

    @abstractmethod
    def down(self, x: Tensor) -> Tensor:
        """Y = W X: (B, N, C) to (B, M, C), in the dtype of x."""

    @abstractmethod
    def matrix(self) -> Tensor:
        """The explicit W, (B, M, N) float32."""

    @abstractmethod
    def spread(self, y: Tensor) -> Tensor:
        """The way back without an index: (B, M, C) to (B, N, C), each old token from the new ones that it went into."""

    def gathered(self, columns: Tensor) -> Tensor:
        """Columns of new tokens from those of old ones, (B, K, N) to (B, K, M): sums by how much of each went where.

        Raises:
            ValueError: this form does not say how the old tokens are shared out.
        """
        raise ValueError(f"the attention map of {type(self).__name__} cannot be pooled: its tokens are not shared out")

    def pooled(self, attention: Tensor) -> Tensor:
        """The attention map of new tokens from that of old ones, A' = W A S^T: (B, H, N, N) to (B, H, M, M).

        S (M, N) says which share of an old token went into which new one, so columns add up and rows of A' sum to 1;
        W averages rows.
        """
        heads = attention.shape[1]
        columns = self.gathered(attention.flatten(1, 2)).unflatten(1, (heads, -1))  # (B, H, N, M)
        rows = self.down(columns.transpose(1, 2).flatten(2))  # (B, M, H * M)
        return rows.unflatten(2, (heads, -1)).transpose(1, 2)

    def up(self, y: Tensor) -> Tensor:
        """Dense tokens from new ones, (B, M, C) to (B, N, C): Eq. 10 by ``nearest``, ``spread`` where that is None."""
        return self.spread(y) if self.nearest is None else gather_tokens(y, self.nearest)

    def retained(self, recovery: Recovery) -> Reduction:
        """What a later recovery needs of this reduction, and no tokens: those of every layer would fill the memory.

        Args:
            recovery: "nearest": once ``nearest`` is there, W is let go, too; "transpose": what ``spread`` needs.
        """
        if recovery == "nearest" and self.nearest is not None:
            return NearestReduction(sizes=self.sizes, kept=self.kept, nearest=self.nearest, grid=self.grid)
        return self


@dataclass(frozen=True, kw_only=True)
class NearestReduction(Reduction):
    """What is left of a reduction for the way back by ``nearest``, never None here: there is no W any more."""

    def down(self, x: Tensor) -> Tensor:
        raise ValueError("only the way back was kept of this reduction")

    def matrix(self) -> Tensor:
        raise ValueError("only the way back by the nearest tokens was kept of this reduction, W was not")

    def spread(self, y: Tensor) -> Tensor:
        assert self.nearest is not None
        return gather_tokens(y, self.nearest)


@dataclass(frozen=True, kw_only=True)
class DenseReduction(Reduction):
    """Many-to-many form: every new token is a weighted mean over all old ones.

    The first ``prefix`` tokens pass through untouched; n = N - prefix, m = M - prefix.

    Attributes:
        assignment: (B, n, m) float32, share of old token j that goes into new token i (Eq. 5, transposed).
        mass: (B, n) float32, size of the old tokens, or None where all weigh 1.
        prefix: number of tokens at the front that are isolated (identity rows and columns).
    """

    assignment: Tensor
    mass: Tensor | None = None
    prefix: int = 0

    def _weights(self) -> Tensor:
        """Row-stochastic weights of the non-prefix part (Eq. 6), (B, m, n); a token that nothing goes into is 0."""
        weighted = self.assignment if self.mass is None else self.assignment * self.mass.unsqueeze(-1)
        total = weighted.sum(1, keepdim=True).clamp_min(torch.finfo(weighted.dtype).tiny)
        return (weighted / total).transpose(1, 2)

    def down(self, x: Tensor) -> Tensor:
        with full_precision(x):
            y = self._weights().to(x.dtype) @ x[:, self.prefix :]
        return torch.cat((x[:, : self.prefix], y), dim=1) if self.prefix else y

    def gathered(self, columns: Tensor) -> Tensor:
        with full_precision(columns):
            behind = columns[..., self.prefix :] @ self.assignment.to(columns.dtype)
        return torch.cat((columns[..., : self.prefix], behind), dim=-1)

    def spread(self, y: Tensor) -> Tensor:
        with full_precision(y):
            x = self.assignment.to(y.dtype) @ y[:, self.prefix :]
        return torch.cat((y[:, : self.prefix], x), dim=1) if self.prefix else x

    def matrix(self) -> Tensor:
        weights = F.pad(self._weights().float(), (self.prefix, 0, self.prefix, 0))
        corner = torch.eye(self.prefix, device=weights.device)
        weights[:, : self.prefix, : self.prefix] = corner
        return weights


@dataclass(frozen=True, kw_only=True)
class MatrixReduction(Reduction):
    """W as it is, for weights of any kind.

    Attributes:
        weights: (B, M, N) float32.
        back: (B, N, M) float32, the method's own way back; None: W transposed, rows normalised to sum 1.
    """

    weights: Tensor
    back: Tensor | None = None

    def down(self, x: Tensor) -> Tensor:
        with full_precision(x):
            return self.weights.to(x.dtype) @ x

    def spread(self, y: Tensor) -> Tensor:
        back = self.weights.transpose(1, 2) if self.back is None else self.back
        if self.back is None:
            back = back / back.sum(-1, keepdim=True).clamp_min(torch.finfo(back.dtype).tiny)
        with full_precision(y):
            return back.to(y.dtype) @ y

    def matrix(self) -> Tensor:
        return self.weights.float()


@dataclass(frozen=True, kw_only=True)
class LocalReduction(MatrixReduction):
    """A reduction that is undone at the end of its own block: x becomes R block(W x) + passed * x.

    Attributes:
        passed: (B, N) float32, share of each token that goes past the block (1 for pruned tokens).
    """

    passed: Tensor

    def retained(self, recovery: Recovery) -> Reduction:
        return self

    def close(self, y: Tensor, x: Tensor) -> Tensor:
        """The block's tokens from its short output y (B, M, C) and its input x (B, N, C)."""
        return self.up(y) + self.passed.unsqueeze(-1).to(x.dtype) * x


@dataclass(frozen=True, kw_only=True)
class SelectionReduction(Reduction):
    """Pruning: new tokens are chosen old ones, in the order of ``kept``, and perhaps one weighted sum of the others.

    Attributes:
        kept: (B, K) int64, never None here.
        columns: N.
        fused: (B, N) float32, weights of one more token at the end, or None; then M = K + 1.
    """

    columns: int
    fused: Tensor | None = None

    def _index(self) -> Tensor:
        assert self.kept is not None
        return self.kept

    def down(self, x: Tensor) -> Tensor:
        y = gather_tokens(x, self._index())
        if self.fused is None:
            return y
        with full_precision(x):
            return torch.cat((y, self.fused.to(x.dtype).unsqueeze(1) @ x), dim=1)

    def spread(self, y: Tensor) -> Tensor:
        index = self._index()
        out = y.new_zeros(y.shape[0], self.columns, y.shape[2])
        if self.fused is not None:
            out = (self.fused > 0).to(y.dtype).unsqueeze(-1) * y[:, -1:]
        return out.scatter(1, index.unsqueeze(-1).expand(-1, -1, y.shape[2]), y[:, : index.shape[1]])

    def matrix(self) -> Tensor:
        chosen = one_hot(self._index(), self.columns)
        return chosen if self.fused is None else torch.cat((chosen, self.fused.float().unsqueeze(1)), dim=1)


@dataclass(frozen=True, kw_only=True)
class AssignmentReduction(Reduction):
    """Exclusive form: every old token goes into one new token (merging), or into none (pruning).

    Attributes:
        index: (B, N) int64, the new token of each old one, -1 for a pruned token.
        weight: (B, N) float32, W at (index_j, j); ignored where index is -1.
    """

    index: Tensor
    weight: Tensor

    def _live(self) -> tuple[Tensor, Tensor]:
        pruned = self.index < 0
        return self.index.clamp_min(0), self.weight.masked_fill(pruned, 0.0)

    def down(self, x: Tensor) -> Tensor:
        if (
            on_tensor_cores(x) and x.shape[1] <= MANY
        ):  # one product, and in order: atomic sums in half precision are not
            with full_precision(x):
                return self._rows(x.dtype) @ x
        index, weight = self._live()
        out = x.new_zeros(x.shape[0], self.sizes.shape[1], x.shape[2])
        return out.scatter_add(1, index.unsqueeze(-1).expand_as(x), x * weight.unsqueeze(-1).to(x.dtype))

    def gathered(self, columns: Tensor) -> Tensor:
        index, live = self.index.clamp_min(0), (self.index >= 0).to(columns.dtype)
        out = columns.new_zeros(*columns.shape[:2], self.sizes.shape[1])
        return out.scatter_add(2, index.unsqueeze(1).expand_as(columns), columns * live.unsqueeze(1))

    def spread(self, y: Tensor) -> Tensor:
        index, _ = self._live()
        return gather_tokens(y, index) * (self.index >= 0).unsqueeze(-1)

    def _rows(self, dtype: torch.dtype) -> Tensor:
        """W (B, M, N) by comparison of indices."""
        rows = torch.arange(self.sizes.shape[1], device=self.index.device).unsqueeze(1)
        return torch.where(self.index.unsqueeze(1) == rows, self.weight.unsqueeze(1), 0.0).to(dtype)

    def matrix(self) -> Tensor:
        index, weight = self._live()
        out = weight.new_zeros(index.shape[0], self.sizes.shape[1], index.shape[1], dtype=torch.float32)
        return out.scatter_add(1, index.unsqueeze(1), weight.float().unsqueeze(1))


def recover(chain: tuple[Reduction, ...], y: Tensor) -> Tensor:
    """Undo several reductions, the last one first: (B, M_last, C) to (B, N_first, C). Local ones are undone already."""
    for reduction in reversed(chain):
        y = y if isinstance(reduction, LocalReduction) else reduction.up(y)
    return y
