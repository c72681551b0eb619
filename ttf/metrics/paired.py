"""Tests of two rows on the same images, image by image."""

from __future__ import annotations

import torch
from torch import Tensor


def mcnemar(a: Tensor, b: Tensor) -> float:
    """Exact two-sided p of right-or-wrong (n,) bool on the same images: only those where they differ count."""
    from scipy.stats import binomtest  # slow to import: not for every evaluation

    better, worse = int((a & ~b).sum()), int((b & ~a).sum())
    return 1.0 if better + worse == 0 else float(binomtest(better, better + worse).pvalue)


def signed_rank(a: Tensor, b: Tensor) -> float:
    """Wilcoxon's two-sided p of paired values (n,); 1 where all are equal."""
    from scipy.stats import wilcoxon  # slow to import: not for every evaluation

    return 1.0 if torch.equal(a, b) else float(wilcoxon(a.double().numpy(), b.double().numpy()).pvalue)
