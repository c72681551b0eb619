"""Comparisons of two rows on the same images, image by image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.stats import binomtest, wilcoxon
from torch import Tensor

from ttf.metrics import intervals


@dataclass(frozen=True)
class Paired:
    """Row a against row b on the same n images.

    Attributes:
        top1: difference a - b in points of top-1.
        top1_ci95: its 95 % interval (normal, of the paired differences).
        top1_p: McNemar's exact test, two-sided.
        kl_ratio: mean KL of a / mean KL of b.
        kl_p: Wilcoxon's signed-rank test of the KL, two-sided; 1 where all are equal.
    """

    top1: float
    top1_ci95: tuple[float, float]
    top1_p: float
    kl_ratio: float
    kl_p: float


def top1_difference(a: Tensor, b: Tensor) -> tuple[float, tuple[float, float]]:
    """Points of top-1 that a has more than b, with the 95 % interval; a, b: (n,) bool, right or wrong."""
    differences = 100 * (a.double() - b.double())
    return differences.mean().item(), intervals.mean(differences)


def mcnemar(a: Tensor, b: Tensor) -> float:
    """Exact two-sided p of right-or-wrong (n,) bool on the same images: only those where they differ count."""
    better, worse = int((a & ~b).sum()), int((b & ~a).sum())
    return 1.0 if better + worse == 0 else float(binomtest(better, better + worse).pvalue)


def signed_rank(a: Tensor, b: Tensor) -> float:
    """Wilcoxon's two-sided p of paired values (n,)."""
    return 1.0 if torch.equal(a, b) else float(wilcoxon(a.double().numpy(), b.double().numpy()).pvalue)


def compare(a: dict[str, Tensor], b: dict[str, Tensor]) -> Paired:
    """Compare the outcomes of two rows (``Store.images``).

    Raises:
        ValueError: the rows are not over the same number of images.
    """
    if len(a["kl"]) != len(b["kl"]):
        raise ValueError(f"rows over {len(a['kl'])} and {len(b['kl'])} images cannot be paired: evaluate the same set")
    difference, interval = top1_difference(a["top1"], b["top1"])
    base = b["kl"].double().mean().item()
    ratio = a["kl"].double().mean().item() / base if base > 0 else float("nan")
    p = mcnemar(a["top1"], b["top1"])
    return Paired(difference, interval, p, ratio, signed_rank(a["kl"], b["kl"]))
