"""How clearly methods decide: the gaps between scores, to compare with what rounding can change.

Methods sort, select and pair tokens by scores in float32. Another processor adds in another order, its scores differ by
some roundings, and a decision whose scores are no further apart (a near tie) may go the other way. Comparing what
follows is fair where the gap is above the noise. Gaps are those of the definitions in float64, apart from the code
under test.

Noise is measured as the difference from float64. Units: cosines; logarithms of positive scores (relative gaps); squared
distances as a share of the largest.

* One operator or block of the golden cases, errors of single scores, on AVX-512 and with the vector instructions of
  torch, MKL and oneDNN off: up to 4e-7, 2e-6 and 1.5e-7.
* The layers of ViT-Ti on 100 photographs, errors of gaps on AVX-512, whatever the size of the gap: cosines 4e-7 root
  mean square, 5e-6 at 99.9 %, 3e-5 the largest of 2 million; logarithms 3e-6, 3e-5 and 9e-5.

Shapes: B batch, N tokens, n scores, F features, P prefix tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import copy
from typing import Any

import torch
from scipy.cluster.hierarchy import linkage
from torch import Tensor
from torch.nn import functional as F

from ttf.methods import LayerView, Method
from ttf.methods.atc import ATC
from ttf.methods.diffrate import DiffRate
from ttf.methods.evit import EViT
from ttf.methods.mctf import MCTF
from ttf.methods.pitome import PiToMe
from ttf.methods.ppt import PPT
from ttf.methods.tofu import ToFu
from ttf.methods.tome import ToMe
from ttf.ops.reduction import gather_tokens

COSINE, SCORE, DISTANCE = 2e-6, 2e-5, 5e-7  # of one operator or block: 3 times the error or more
SHARE = 2e-6  # of ATS's cumulative sums and levels, which are off by 1e-7
COST = 5e-5  # of K-Medoids' costs, relative: off by 1e-5, as the distance of a token to itself does not come out as 0
DEEP_COSINE, DEEP_SCORE = 1e-5, 1e-4  # of a whole model: 25 times the root mean square or more


def assert_clear(gaps: Tensor, noise: float | Tensor) -> None:
    """No gap is below the noise: every machine decides the same."""
    near = gaps <= noise
    assert not near.any(), f"{int(near.sum())} of {near.numel()} decisions are near ties, smallest {gaps.min():.1e}"


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """(B, n, F) and (B, m, F) to (B, n, m) float64."""
    return F.normalize(a.double(), dim=-1) @ F.normalize(b.double(), dim=-1).transpose(1, 2)


def distances(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean, (B, n, F) and (B, m, F) to (B, n, m) float64, without the cancellation of a matrix product."""
    return torch.cdist(a.double(), b.double(), compute_mode="donot_use_mm_for_euclid_dist")


def runner_up(scores: Tensor) -> Tensor:
    """How far the best of the last dimension is ahead of the second, without end where there is one alone."""
    scores = F.pad(scores, (0, 1), value=-torch.inf)
    best = scores.topk(2, dim=-1).values
    return best[..., 0] - best[..., 1]


def order(scores: Tensor, first: int | None = None) -> Tensor:
    """Smallest gap between neighbours in the descending order of (B, n), down to the one behind the ``first``: (B,)."""
    steps = -scores.sort(dim=1, descending=True).values.diff(dim=1)[:, :first]
    return F.pad(steps, (0, 1), value=torch.inf).amin(dim=1)


def cut(scores: Tensor, count: int) -> Tensor:
    """Gap between the last of the ``count`` highest of (B, n) and the first of the others, (B,)."""
    steps = -scores.sort(dim=1, descending=True).values.diff(dim=1)
    return steps[:, count - 1] if 0 < count < scores.shape[1] else steps.new_full((len(steps),), torch.inf)


def matching(metric: Tensor, r: int, prefix: int) -> Tensor:
    """Smallest gap of ToMe's matching of (B, N, F): who is merged, with whom, and the order where that is by score."""
    similar = cosines(metric[:, ::2], metric[:, 1::2])
    similar[:, : (prefix + 1) // 2] = similar[:, :, : prefix // 2] = -2.0
    best = similar.amax(dim=2)
    merged = best.argsort(dim=1, descending=True)[:, :r]
    partner = runner_up(gather_tokens(similar, merged)).amin(dim=1)
    single = order(best.sort(dim=1).values[:, : best.shape[1] - r + 1]) if prefix == 0 else cut(best, r)
    return torch.minimum(partner, single)


def watched(method: Method, note: Callable[[LayerView, int], None]) -> Method:
    """The same method, which tells ``note`` what it is asked before it answers."""
    kind = type(method)

    def telling(step: Callable[..., Any]) -> Callable[..., Any]:
        def run(self: Method, view: LayerView, keep: int) -> Any:
            note(view, keep)
            return step(self, view, keep)

        return run

    steps = {name: telling(getattr(kind, name)) for name in ("reduce", "__call__") if hasattr(kind, name)}
    twin = copy(method)
    object.__setattr__(twin, "__class__", type(kind.__name__, (kind,), steps))
    return twin


class Clearness:
    """How clearly the images of one batch were decided in all layers so far.

    Attributes:
        smallest: (B,), smallest gap of an image as a multiple of the noise; a near tie where that is below 1. The order
            of tokens that all stay changes nothing in a transformer, so it is no decision.
        order: (B,), the same for the order of tokens that a pruning leaves: a decision once they are paired by place.
    """

    def __init__(self, method: Method, batch: int) -> None:
        self.method = method
        self.smallest = self.order = torch.full((batch,), torch.inf, dtype=torch.float64)

    def note(self, view: LayerView, keep: int) -> None:
        """Take in what ``method`` decides about a layer. The same layer twice is as good as once."""
        kinds = {
            ToMe: self._tome,
            EViT: self._evit,
            PPT: self._ppt,
            DiffRate: self._diffrate,
            ToFu: self._tome,
            ATC: self._atc,
            PiToMe: self._never,
            MCTF: self._never,
        }
        self.smallest = torch.minimum(self.smallest, kinds[type(self.method)](view, keep))

    def _tome(self, view: LayerView, keep: int) -> Tensor:
        tokens = view.x.shape[1]
        r = min(tokens - keep, (tokens - view.prefix) // 2)
        return matching(view.keys, r, view.prefix) / DEEP_COSINE

    def _never(self, view: LayerView, keep: int) -> Tensor:
        """Tokens are put in the order of their scores and paired by place: two of them are always near each other."""
        return torch.zeros(len(view.x), dtype=torch.float64)

    def _atc(self, view: LayerView, keep: int) -> Tensor:
        """The gap of the heights at which clusters merge, where the tree is cut."""
        patches = view.keys[:, view.prefix :]
        apart, cut = 1 - cosines(patches, patches), view.x.shape[1] - keep
        upper = torch.triu_indices(apart.shape[1], apart.shape[1], 1)
        heights = [linkage(image[upper[0], upper[1]].cpu(), self.method.linkage)[:, 2] for image in apart]
        return torch.tensor([high[cut] - high[cut - 1] for high in heights]) / DEEP_COSINE

    def _evit(self, view: LayerView, keep: int) -> Tensor:
        return cut(view.scores[:, view.prefix :].double().log(), keep - view.prefix) / DEEP_SCORE

    def _diffrate(self, view: LayerView, keep: int) -> Tensor:
        scores, prefix = view.scores[:, view.prefix :].double().log(), view.prefix
        left = min(self.method.prune_kept[view.block], view.x.shape[1]) - prefix
        head = min(keep - prefix, left)
        gap = torch.minimum(cut(scores, left), cut(scores, head)) / DEEP_SCORE
        patches = gather_tokens(view.x[:, prefix:], scores.argsort(dim=1, descending=True))
        if head == left:
            return gap
        partner = runner_up(cosines(patches[:, head:left], patches[:, :head])).amin(dim=1)
        return torch.minimum(gap, partner / DEEP_COSINE)

    def _ppt(self, view: LayerView, keep: int) -> Tensor:
        pooled = None if self.method.mode == "prune" else torch.minimum(self._tome(view, keep), self.order)
        if self.method.mode == "pool":
            return pooled
        raw = (view.scores.double() * view.value_norms.double())[:, view.prefix :]
        scores = raw / raw.sum(dim=1, keepdim=True)
        staying = max(keep - view.prefix, scores.shape[1] - scores.shape[1] // 2)
        pruned = cut(scores.log(), staying) / DEEP_SCORE
        if pooled is None:
            return pruned
        off = scores.var(dim=1).log() - math.log(self.method.threshold)
        pool = off < 0
        self.order = torch.minimum(self.order, (order(scores.log(), staying) / DEEP_SCORE).where(~pool, torch.inf))
        return torch.minimum(torch.where(pool, pooled, pruned), off.abs() / DEEP_SCORE)
