"""Token Transforming (arXiv 2506.05709, Sec. 3), with every reading that the paper leaves open as a field."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from ttf.methods.base import LayerView, Method
from ttf.ops import transform
from ttf.ops.attention import ScoreRows, Wanted, check_score_rows
from ttf.ops.numerics import require_finite
from ttf.ops.reduction import DenseReduction, behind_prefix, gather_tokens

Feature = Literal["x", "norm", "keys", "xk"]
Selection = Literal["informative", "redundancy"]
FEATURES = ("x", "norm", "keys", "xk")
SELECTIONS = ("informative", "redundancy")


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
        selection: "informative" (the highest H) or "redundancy" (redundancy-aware: H times what no
            more informative token already says; beyond the paper).
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
    scaling: bool = True

    def __post_init__(self) -> None:
        transform.check_temperature(self.kappa, self.tau, self.gate)
        _one_of("feature", self.feature, FEATURES)
        _one_of("selection", self.selection, SELECTIONS)
        check_score_rows(self.score_rows)

    @property
    def wanted(self) -> Wanted:
        return Wanted(self.score_rows, keys=self.feature in ("keys", "xk"), normed=self.feature == "norm")

    def _units(self, view: LayerView) -> Tensor:
        x, keys = view.x, view.keys
        if self.feature in ("keys", "xk"):
            assert keys is not None, "the host did not provide keys"
            return transform.unit_features(keys) if self.feature == "keys" else transform.unit_features(x, keys)
        if self.feature == "norm":
            assert view.normed is not None, "the host did not provide normed tokens"
            return transform.unit_features(view.normed)
        return transform.unit_features(x)

    def _cosines(self, units: Tensor, scores: Tensor, keep: int, prefix: int) -> tuple[Tensor, Tensor]:
        """Informative tokens (B, M) and cosines of all tokens with them (B, N, M), all prefix tokens informative."""
        if self.selection == "informative":
            index = behind_prefix(transform.select(scores[:, prefix:], keep - prefix), prefix)
            return index, transform.similarity(units, gather_tokens(units, index))
        full = transform.similarity(units, units)
        ranks = transform.novelty(scores[:, prefix:], full[:, prefix:, prefix:])
        index = behind_prefix(transform.select(ranks, keep - prefix), prefix)
        return index, gather_tokens(full, index).transpose(1, 2)

    def reduce(self, view: LayerView, keep: int) -> DenseReduction:
        """See ``Method.reduce``. Raises ``ValueError`` where tokens, keys or attention are not finite (on a CPU)."""
        assert view.scores is not None and view.prefix < keep <= view.x.shape[1]
        require_finite(view.x, "the tokens")
        require_finite(view.scores, "the attention scores")
        isolated = view.prefix if self.isolate else 0
        units, scores = self._units(view)[:, isolated:], view.scores[:, isolated:]
        index, cosines = self._cosines(units, scores, keep - isolated, view.prefix - isolated)
        shares = transform.assign(transform.mark_own(cosines, index), self.kappa, self.tau, self.gate)
        mass = view.sizes[:, isolated:] if self.accumulate and view.sizes is not None else None
        sizes = F.pad(transform.transformed_sizes(shares, mass), (isolated, 0), value=1.0)
        kept = behind_prefix(index, isolated)
        return DenseReduction(sizes=sizes, kept=kept, assignment=shares, mass=mass, prefix=isolated)


PRESETS: dict[str, dict[str, object]] = {
    "default": {},
    "paper": {"accumulate": False, "isolate": False, "selection": "informative"},
}
