"""Token Transforming (arXiv 2506.05709, Sec. 3), with every reading that the paper leaves open as a field."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from ttf.methods.base import ADDED, LayerView, Method
from ttf.ops import fused, plain, transform
from ttf.ops.attention import ScoreRows, Wanted, check_score_rows
from ttf.ops.grid import grid_for, pooling_matrix, require_grid
from ttf.ops.numerics import full_precision, require_finite
from ttf.ops.reduction import DenseReduction, Reduction, behind_prefix

Feature = Literal["x", "norm", "keys", "xk"]
Selection = Literal["informative", "redundancy", "pool"]
Similarity = Literal["cosine", "euclidean", "inverse"]
Weights = Literal["sizes", "attention"]
FEATURES = ("x", "norm", "keys", "xk")
SELECTIONS = ("informative", "redundancy", "pool")
SIMILARITIES = ("cosine", "euclidean", "inverse")
WEIGHTS = ("sizes", "attention")


def _one_of(name: str, value: str, valid: tuple[str, ...]) -> None:
    if value not in valid:
        raise ValueError(f"{name} must be one of {', '.join(valid)}, got {value!r}")


@dataclass(frozen=True)
class TokenTransform(Method):
    """Many-to-many token transforming: Y = W X with W from gated cosine similarity.

    The defaults are the best reading measured on real weights (docs/reproduction.md); ``PRESETS["paper"]`` is the
    literal reading of the equations.

    Attributes:
        kappa: threshold of the gate (Eq. 3), in [-1, 1].
        tau: inverse temperature of the assignment (Eq. 5), > 0.
        accumulate: sizes carry over from layer to layer (m_ij <- m_ij s_j) instead of starting again at 1.
        isolate: prefix tokens keep to themselves (identity rows and columns of W) instead of taking part.
        feature: what the cosine (Eq. 4) compares: tokens "x", their LayerNorm "norm", mean "keys", or "xk", the mean
            of the cosines of x and of the keys.
        gate: below kappa a cosine becomes "zero" (Eq. 3) or is left out of the softmax ("mask").
        score_rows: rows of the attention map that informativeness (Eq. 2) sums: "all", "patch" or "class".
        score_step: sum every ``score_step``-th of these rows alone, >= 1: cheaper where torch's attention with its map
            is (not where one operator gives both).
        selection: "informative" (the highest H), "redundancy" (redundancy-aware: H times what no more informative
            token already says; beyond the paper) or "pool" (no tokens: the grid pooled to about as many
            cells, Table 8).
        similarity: "cosine" (Eq. 4), "euclidean" (minus the distance, without gate) or "inverse" (1 / (1 + distance),
            gated): the last two for Table 8.
        weights: what an old token weighs in the means (Eq. 6) beside its share: its size, where these accumulate
            ("sizes"), or that times its informativeness H ("attention", after MCTF; beyond the paper).
        normalise: assignment normalisation (Eq. 5); without it (Table 7) m is the gated similarity itself.
        scaling: later layers add log s to their attention logits (Eq. 7).

    Raises:
        ValueError: a value out of its range.
    """

    kappa: float = 0.5
    tau: float = 150.0
    accumulate: bool = True
    isolate: bool = True
    feature: Feature = "x"
    gate: transform.Gate = "zero"
    score_rows: ScoreRows = "all"
    selection: Selection = "redundancy"
    similarity: Similarity = "cosine"
    weights: Weights = field(default="sizes", metadata=ADDED)
    normalise: bool = True
    scaling: bool = True
    score_step: int = field(default=1, metadata=ADDED)

    def __post_init__(self) -> None:
        transform.check_temperature(self.kappa, self.tau, self.gate)
        _one_of("feature", self.feature, FEATURES)
        _one_of("selection", self.selection, SELECTIONS)
        _one_of("similarity", self.similarity, SIMILARITIES)
        _one_of("weights", self.weights, WEIGHTS)
        check_score_rows(self.score_rows)
        if isinstance(self.score_step, bool) or self.score_step < 1:
            raise ValueError(f"score_step is a number of rows and must be at least 1, got {self.score_step}")

    @property
    def unread(self) -> tuple[str, ...]:
        gated = ("kappa", "gate") if self.similarity == "euclidean" else ()  # distances have no gate in the softmax
        unscored = self.selection == "pool" and self.weights == "sizes"
        return (
            *(gated if self.normalise else ("tau", "gate")),  # without the softmax of Eq. 5 kappa alone is left of it
            *(("score_rows",) if unscored else ()),
            *(("score_step",) if unscored or self.score_rows == "class" else ()),
        )

    @property
    def wanted(self) -> Wanted:
        keys, normed = self.feature in ("keys", "xk"), self.feature == "norm"
        return Wanted(self.score_rows, keys=keys, normed=normed, score_step=self.score_step)

    @property
    def runs_plain(self) -> bool:
        return not self._is_operator

    @property
    def names_tokens(self) -> bool:
        return self.selection != "pool"

    def _features(self, view: LayerView, isolated: int) -> tuple[Tensor, ...]:
        """What the similarity compares, (B, n, F) each; their cosines are averaged."""
        named = {"x": (view.x,), "norm": (view.normed,), "keys": (view.keys,), "xk": (view.x, view.keys)}[self.feature]
        assert all(part is not None for part in named), f"the host did not provide {self.feature}"
        return tuple(part[:, isolated:] for part in named if part is not None)

    def _similarity(self, parts: tuple[Tensor, ...], others: tuple[Tensor, ...] | None = None) -> Tensor:
        """Similarities of two sets of features, of one to itself without ``others``: (B, rows of parts, of others)."""
        if self.similarity == "cosine":
            return transform.mean_cosines(parts, others)
        distances = transform.distances(torch.cat(parts, dim=-1), torch.cat(others or parts, dim=-1))
        return -distances if self.similarity == "euclidean" else 1 / (1 + distances)

    def _pooled(self, parts: tuple[Tensor, ...], pool: Tensor, prefix: int) -> Tensor:
        """Similarities of all tokens to the prefix tokens and the pooled cells, (B, n, m)."""
        with full_precision(pool):
            pooled = (torch.cat((p[:, :prefix].float(), pool @ p[:, prefix:].float()), dim=1) for p in parts)
            return self._similarity(parts, tuple(pooled))

    def _shares(self, similarities: Tensor) -> Tensor:
        """m of Eq. 5, transposed, (B, n, m)."""
        if not self.normalise:
            return similarities.masked_fill(similarities < self.kappa, 0.0).clamp_min(0.0)
        kappa = -math.inf if self.similarity == "euclidean" else self.kappa
        return transform.assign(similarities, kappa, self.tau, self.gate)

    def reduce(self, view: LayerView, keep: int) -> Reduction:
        """See ``__call__``."""
        return self(view, keep)[1]

    def __call__(self, view: LayerView, keep: int) -> tuple[Tensor, Reduction]:
        """As ``Method.__call__``; with selection="pool" there are about ``keep`` tokens, on a grid.

        Raises:
            ValueError: tokens, keys or attention are not finite (on a CPU), or there is no grid to pool.
        """
        assert view.scores is not None and view.prefix < keep <= view.x.shape[1]
        require_finite(view.x, "the tokens")
        require_finite(view.scores, "the attention scores")
        isolated = view.prefix if self.isolate else 0
        mass = view.sizes[:, isolated:] if self.accumulate and view.sizes is not None else None
        parts = self._features(view, isolated)
        reading = plain.Reading(self.kappa, self.tau, self.gate, self.selection == "redundancy")
        if self._is_operator and fused.at_once(reading, view.x, *parts):
            features = parts[0] if len(parts) == 1 else transform.unit_features(*parts)
            return fused.transform(view.x, features, view.scores, mass, keep, view.prefix, reading)
        reduction = self._one_by_one(view, parts, keep, isolated, mass)
        return reduction.down(view.x), reduction

    @property
    def _is_operator(self) -> bool:
        """Whether this reading is one that ``ttf::transform`` has."""
        plain_means = self.normalise and self.weights == "sizes"
        return self.selection != "pool" and self.similarity == "cosine" and plain_means

    def _one_by_one(
        self, view: LayerView, parts: tuple[Tensor, ...], keep: int, isolated: int, mass: Tensor | None
    ) -> DenseReduction:
        """By torch's operators, for any reading."""
        assert view.scores is not None
        prefix, cells, kept = view.prefix - isolated, None, None
        if self.selection == "pool":
            grid = require_grid(view.grid, view.x.shape[1] - view.prefix, "selection=pool")
            cells = grid_for(grid, keep - view.prefix)
            similarities = self._pooled(parts, pooling_matrix(grid, cells, view.x.device), prefix)
        else:
            scores, redundancy = view.scores[:, isolated:], self.selection == "redundancy"
            index, similarities = transform.informative(
                parts, scores, keep - isolated, prefix, redundancy, self._similarity
            )
            similarities = transform.mark_own(similarities, index, 0.0 if self.similarity == "euclidean" else 1.0)
            kept = behind_prefix(index, isolated)
        shares = self._shares(similarities)
        sizes = plain.with_isolated(transform.transformed_sizes(shares, mass), isolated)
        if self.weights == "attention":
            attended = view.scores[:, isolated:].float()
            mass = attended if mass is None else attended * mass
        return DenseReduction(sizes=sizes, kept=kept, assignment=shares, mass=mass, prefix=isolated, grid=cells)


PRESETS: dict[str, dict[str, object]] = {
    "default": {},
    "paper": {"accumulate": False, "isolate": False, "selection": "informative"},
}
