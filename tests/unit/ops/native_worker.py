"""Calls of compiled operators that were built with checks of addresses: ``native_worker.py LIBRARY``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor

from tests.unit.ops.operator_calls import BROKEN, CALLS, heads, layer

ATTENTION = ((1, 0), (1, 1), (2, 1), (2, 3), (3, 17), (1, 70), (2, 513), (1, 1601))  # images, tokens
TRANSFORM = ((0, 5), (1, 1), (2, 3), (3, 17), (4, 63), (1, 300), (2, 517))


def _views(part: Tensor) -> Iterator[Tensor]:
    """The same tensor as it may lie in memory, at the very end of it."""
    yield part
    yield part.transpose(-1, -2).contiguous().transpose(-1, -2)
    if len(part):
        yield part[:1].expand_as(part)
    yield torch.cat((torch.zeros_like(part), part), dim=-1)[..., part.shape[-1] :]


def _well_formed() -> int:
    calls = 0
    for batch, tokens in ATTENTION:
        for q, k, v in zip(*map(_views, heads(tokens, batch)), strict=True):
            for bias in (None, torch.rand(batch, tokens)):
                torch.ops.ttf.native_summed_attention(q, k, v, bias, 0.3, min(1, tokens))
                calls += 1
    for (batch, tokens), isolated, mask, redundancy in product(TRANSFORM, (0, 1), (False, True), (False, True)):
        if isolated >= tokens:
            continue
        x, features, scores, mass = layer(tokens, batch, isolated=isolated)
        scores[:, ::3] = float("nan")
        for parts in zip(_views(x), _views(features), _views(scores), _views(mass), strict=True):
            for keep in {isolated + 1, (isolated + tokens + 1) // 2, tokens}:
                torch.ops.ttf.native_transform(*parts, keep, isolated, 0.5, 30.0, mask, redundancy)
                calls += 1
    return calls


def _malformed() -> int:
    refused = 0
    for name, case in CALLS:
        # copies, so that nothing readable lies behind their ends
        first, *rest = (part.clone() if isinstance(part, Tensor) else part for part in BROKEN[name]()[case])
        if name == "summed_attention" and rest[2] is not None:
            rest[2] = rest[2].flatten(1)
        try:
            getattr(torch.ops.ttf, f"native_{name}")(first, *rest)
        except RuntimeError:
            refused += 1
    return refused


def main() -> None:
    torch.manual_seed(0)
    torch.ops.load_library(sys.argv[1])
    for threads in (1, 3):
        torch.set_num_threads(threads)
        print(_well_formed(), _malformed() == len(CALLS))


if __name__ == "__main__":
    import ttf.ops  # noqa: F401  # defines the operators

    main()
