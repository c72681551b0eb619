"""The transform (Eq. 3-8) and the redundancy-aware score, without an (n, n) or (n, m) matrix in memory.

Shapes: B batch, n old tokens that take part, m new tokens, F features, C channels. Cosines are computed in float32;
with precision "tf32x3" from three products on tensor cores each, which keeps nearly all of float32's digits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ttf.ops.kernels.tiles import Precision, cosine_tile, dot, logit_tile, on_device, widened

TOKENS = 64  # of a tile of novelty
NEW, OLD, FEATURES = 64, 32, 32  # a tile of logits, the same wherever they are computed
WARPS = 8
# Channels of one program of transform_down, which keeps its y, 64 x 256 float32, in the registers of 256 threads: 64
# each. The logits are recomputed for every 256 channels: once at C = 192, five times at 1280. All of 1280 channels
# (2048, as a power of two) would leave registers for 8 new tokens, and x would be read eight times as often.
LARGEST_BLOCK = 256
SMALLEST_SUM = torch.finfo(torch.float32).tiny


@triton.jit
def novelty_kernel(
    out, units, scores, n, features,
    TOKENS: tl.constexpr, FEATURES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Scores of one block of tokens j, against all tokens i."""
    blocks = tl.cdiv(n, TOKENS)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    j = tl.program_id(0) % blocks * TOKENS + tl.arange(0, TOKENS)
    units += image * n * features
    score = tl.load(scores + image * n + j, mask=j < n, other=0.0)
    said = tl.full((TOKENS,), -1.0, tl.float32)
    for start in range(0, n, TOKENS):
        i = start + tl.arange(0, TOKENS)
        other = tl.load(scores + image * n + i, mask=i < n, other=float("-inf"))
        cosines = cosine_tile(units, n, units, n, j, i, features, TOKENS, TOKENS, FEATURES, PRECISION)
        said = tl.maximum(said, tl.max(tl.where(other[None, :] > score[:, None], cosines, -1.0), 1))
    tl.store(out + image * n + j, score * (1.0 - said), mask=j < n)


@triton.jit
def assignment_lse_kernel(
    out, units, chosen, index, n, m, features, kappa, tau,
    MASKED: tl.constexpr, NEW: tl.constexpr, OLD: tl.constexpr, FEATURES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Log-sum-exp over all new tokens, for one block of old tokens."""
    blocks = tl.cdiv(n, OLD)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    j = tl.program_id(0) % blocks * OLD + tl.arange(0, OLD)
    highest = tl.full((OLD,), float("-inf"), tl.float32)
    shift = tl.zeros((OLD,), tl.float32)
    total = tl.zeros((OLD,), tl.float32)
    for start in range(0, m, NEW):
        i = start + tl.arange(0, NEW)
        logits = logit_tile(
            chosen, units, index, image, i, j, m, n, features, kappa, tau, MASKED, NEW, OLD, FEATURES, PRECISION
        )
        above = tl.maximum(highest, tl.max(logits, 0))
        shift = tl.where(above == float("-inf"), 0.0, above)  # infinity minus infinity would be no number
        total = total * tl.exp(highest - shift) + tl.sum(tl.exp(logits - shift[None, :]), 0)
        highest = above
    tl.store(out + image * n + j, shift + tl.log(total), mask=j < n)


@triton.jit
def transform_down_kernel(
    y, sizes, units, chosen, index, lse, mass, x, x_image, x_row, n, m, features, channels, kappa, tau, smallest,
    MASKED: tl.constexpr, HAS_MASS: tl.constexpr, NEW: tl.constexpr, OLD: tl.constexpr, FEATURES: tl.constexpr,
    CHANNELS: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """One block of channels of one block of new tokens: attention whose keys have the bias log mass_j - lse_j."""
    groups, blocks = tl.cdiv(channels, CHANNELS), tl.cdiv(m, NEW)
    group, block = tl.program_id(0) % groups, tl.program_id(0) // groups % blocks
    image = (tl.program_id(0) // groups // blocks).to(tl.int64)
    i, c = block * NEW + tl.arange(0, NEW), group * CHANNELS + tl.arange(0, CHANNELS)
    acc = tl.zeros((NEW, CHANNELS), tl.float32)
    highest = tl.full((NEW,), float("-inf"), tl.float32)
    shift, total = tl.zeros((NEW,), tl.float32), tl.zeros((NEW,), tl.float32)
    for start in range(0, n, OLD):
        j = start + tl.arange(0, OLD)
        logits = logit_tile(
            chosen, units, index, image, i, j, m, n, features, kappa, tau, MASKED, NEW, OLD, FEATURES, PRECISION
        )
        norm = tl.load(lse + image * n + j, mask=j < n, other=float("inf"))
        # no share exceeds 1, and a dropped token, whose logits and lse are all minus infinity, has none
        shares = tl.where(logits == float("-inf"), float("-inf"), tl.minimum(logits - norm[None, :], 0.0))
        if HAS_MASS:
            shares += tl.log(tl.load(mass + image * n + j, mask=j < n, other=0.0))[None, :]
        # relative to the largest of the row, else float16 would lose a row whose own token has the size 0
        above = tl.maximum(highest, tl.max(shares, 1))
        shift = tl.where(above == float("-inf"), 0.0, above)
        weights, faded = tl.exp(shares - shift[:, None]), tl.exp(highest - shift)
        total = total * faded + tl.sum(weights, 1)
        inside = (j[:, None] < n) & (c[None, :] < channels)
        old = tl.load(x + image * x_image + j[:, None] * x_row + c[None, :], mask=inside, other=0.0)
        acc = dot(weights.to(old.dtype), old, acc * faded[:, None], PRECISION, WIDEN)
        highest = above
    new = acc / tl.maximum(total, smallest)[:, None]
    inside = (i[:, None] < m) & (c[None, :] < channels)
    tl.store(y + (image * m + i[:, None]) * channels + c[None, :], new.to(y.dtype.element_ty), mask=inside)
    if group == 0:
        tl.store(sizes + image * m + i, total * tl.exp(shift), mask=i < m)


def novelty(units: Tensor, scores: Tensor, precision: Precision = "ieee") -> Tensor:
    """Redundancy-aware score: score_j = h_j * (1 - max over {i: h_i > h_j} of cos(f_i, f_j)).

    Args:
        units: (B, n, F) float32 unit vectors.
        scores: (B, n) float32 informativeness h.
        precision: of the cosines.

    Returns:
        (B, n) float32.
    """
    batch, n, features = units.shape
    assert units.dtype == scores.dtype == torch.float32 and scores.shape == (batch, n)
    units, scores = units.contiguous(), scores.contiguous()
    out = torch.empty_like(scores)
    grid = (batch * triton.cdiv(n, TOKENS),)
    with on_device(units):
        novelty_kernel[grid](out, units, scores, n, features, TOKENS=TOKENS, FEATURES=FEATURES, PRECISION=precision)
    return out


def assignment_lse(
    units: Tensor,
    chosen_units: Tensor,
    index: Tensor,
    kappa: float,
    tau: float,
    gate: str,
    precision: Precision = "ieee",
) -> Tensor:
    """Log-sum-exp over the m informative tokens of the gated logits (Eq. 3 and 5), own cosines set to exactly 1.

    Args:
        units: (B, n, F) float32 unit vectors of the old tokens.
        chosen_units: (B, m, F) float32, those of the informative tokens.
        index: (B, m) int64, old token of each new one.
        kappa, tau, gate: see ``ttf.ops.transform.assign``.
        precision: of the cosines.

    Returns:
        (B, n) float32; minus infinity for a token that gate "mask" drops.
    """
    batch, n, features = units.shape
    assert units.dtype == chosen_units.dtype == torch.float32 and index.shape == chosen_units.shape[:2]
    out = torch.empty(batch, n, dtype=torch.float32, device=units.device)
    grid = (batch * triton.cdiv(n, OLD),)
    with on_device(units):
        assignment_lse_kernel[grid](
            out, units.contiguous(), chosen_units.contiguous(), index.contiguous(), n, index.shape[1], features,
            float(kappa), float(tau), MASKED=gate == "mask", NEW=NEW, OLD=OLD, FEATURES=FEATURES, PRECISION=precision,
            num_warps=WARPS,
        )  # fmt: skip
    return out


def transform_down(
    units: Tensor, chosen_units: Tensor, index: Tensor, lse: Tensor, mass: Tensor | None, x: Tensor,
    kappa: float, tau: float, gate: str, precision: Precision = "ieee",
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Y = W X and the sizes (Eq. 5, 6, 8): m_ij = exp(logit_ij - lse_j), s_i = sum_j m_ij mass_j.

    y_i = sum_j m_ij mass_j x_j / s_i; a new token that nothing goes into is 0.

    Args:
        units, chosen_units, index, kappa, tau, gate, precision: as for ``assignment_lse``, and the same values.
        lse: (B, n) float32 from ``assignment_lse``.
        mass: (B, n) sizes of the old tokens, or None where all weigh 1.
        x: (B, n, C) float32, float16 or bfloat16, any strides.

    Returns:
        y (B, m, C) in the dtype of x, sizes (B, m) float32.
    """
    (batch, n, features), m, channels = units.shape, index.shape[1], x.shape[2]
    assert x.shape[:2] == lse.shape == (batch, n) and lse.dtype == torch.float32
    x = x if x.stride(2) == 1 else x.contiguous()
    y, sizes = x.new_empty(batch, m, channels), lse.new_empty(batch, m)
    width = min(LARGEST_BLOCK, max(16, triton.next_power_of_2(channels)))
    weighed = lse if mass is None else mass.float().contiguous()
    grid = (batch * triton.cdiv(m, NEW) * triton.cdiv(channels, width),)
    with on_device(x):
        transform_down_kernel[grid](
            y, sizes, units.contiguous(), chosen_units.contiguous(), index.contiguous(), lse.contiguous(), weighed, x,
            x.stride(0), x.stride(1), n, m, features, channels, float(kappa), float(tau), SMALLEST_SUM,
            MASKED=gate == "mask", HAS_MASS=mass is not None, NEW=NEW, OLD=OLD, FEATURES=FEATURES, CHANNELS=width,
            PRECISION=precision, WIDEN=widened(x), num_warps=WARPS,
        )  # fmt: skip
    return y, sizes
