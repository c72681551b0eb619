"""The m highest scores by counting who is above whom: no sort, and ties go to the token that comes first.

Shapes: B batch, p patch tokens, m informative tokens.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ttf.ops.kernels.tiles import RANKS, on_device, padded

SHORT = 512  # patch tokens; up to here one program ranks an image
STEP = 32
CHUNK = 1024


@triton.jit
def _loaded(scores, i, p):
    """Scores i; those behind the last one at minus infinity, and what is no number first, as in topk."""
    score = tl.load(scores + i, mask=i < p, other=float("-inf"))
    return tl.where(score != score, float("inf"), score)


@triton.jit
def _above(rival, i, score, j):
    """How many of the rivals i stand above each of the tokens j, (J) int32."""
    equal = (rival[None, :] == score[:, None]) & (i[None, :] < j[:, None])
    return tl.sum(((rival[None, :] > score[:, None]) | equal).to(tl.int32), 1)


@triton.jit(do_not_specialize=["p", "keep", "behind", "score_image"])
def select_kernel(index, scores, p, keep, behind, score_image, ALL: tl.constexpr, STEP: tl.constexpr):
    """Indices of one image: the ``behind`` tokens in front of the patch tokens, then the chosen ones of these."""
    image = tl.program_id(0).to(tl.int64)
    scores += image * score_image
    index += image * (behind + keep)
    j = tl.arange(0, ALL)
    score = _loaded(scores, j, p)
    rank = tl.zeros((ALL,), tl.int32)
    for start in range(0, p, STEP):
        i = start + tl.arange(0, STEP)
        rank += _above(_loaded(scores, i, p), i, score, j)
    chosen = (rank < keep) & (j < p)
    place = behind + tl.cumsum(chosen.to(tl.int32), 0) - 1
    tl.store(index + place, (behind + j).to(tl.int64), mask=chosen)
    for front in range(behind):
        tl.store(index + front, front)


@triton.jit(do_not_specialize=["p", "keep", "score_image"])
def chosen_kernel(chosen, scores, p, keep, score_image, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Whether each of one block of tokens is among the highest."""
    blocks = tl.cdiv(p, ROWS)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    j = tl.program_id(0) % blocks * ROWS + tl.arange(0, ROWS)
    scores += image * score_image
    score = _loaded(scores, j, p)
    rank = tl.zeros((ROWS,), tl.int32)
    for start in range(0, p, COLUMNS):
        i = start + tl.arange(0, COLUMNS)
        rank += _above(_loaded(scores, i, p), i, score, j)
    tl.store(chosen + image * p + j, (rank < keep).to(tl.int32), mask=j < p)


@triton.jit(do_not_specialize=["p", "keep", "behind"])
def places_kernel(index, chosen, p, keep, behind, CHUNK: tl.constexpr):
    """Indices of one image from its ``chosen`` tokens."""
    image = tl.program_id(0).to(tl.int64)
    index += image * (behind + keep)
    before = behind
    for start in range(0, p, CHUNK):
        j = start + tl.arange(0, CHUNK)
        taken = tl.load(chosen + image * p + j, mask=j < p, other=0)
        place = before + tl.cumsum(taken, 0) - 1
        tl.store(index + place, (behind + j).to(tl.int64), mask=taken > 0)
        before += tl.sum(taken, 0)
    for front in range(behind):
        tl.store(index + front, front)


def select(index: Tensor, scores: Tensor, behind: int) -> None:
    """The patch tokens of the highest scores in raster order, with all ``behind`` tokens in front of them.

    Args:
        index: (B, behind + keep) int64, contiguous, written; counted with the tokens in front. keep is from 1 to p.
        scores: (B, p) float32, p contiguous.
        behind: how many tokens stand in front of the patch tokens.
    """
    (batch, p), keep = scores.shape, index.shape[1] - behind
    with on_device(scores):
        if p <= SHORT:
            options = {"ALL": padded(p), "STEP": STEP, "num_warps": 4}
            select_kernel[(batch,)](index, scores, p, keep, behind, scores.stride(0), **options)
            return
        chosen = torch.empty(batch, p, device=scores.device, dtype=torch.int32)
        chosen_kernel[(batch * triton.cdiv(p, RANKS.rows),)](
            chosen, scores, p, keep, scores.stride(0), ROWS=RANKS.rows, COLUMNS=RANKS.columns, **RANKS.options
        )
        places_kernel[(batch,)](index, chosen, p, keep, behind, CHUNK=CHUNK, num_warps=4)
