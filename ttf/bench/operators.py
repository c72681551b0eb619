"""Single operators timed beside what they replace: attention with its column sums, the transform in its three forms."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch
from rich.progress import track
from torch import Tensor

from ttf.ops import attention, backend, native, plain
from ttf.results.costs import Row

HEAD = 64  # channels
RATIO = 0.7
# (images, heads, tokens)
ATTENTION = ((16, 6, 197), (8, 6, 577), (1, 16, 1601), (1, 6, 4097))
# (images, tokens, channels)
TRANSFORM = ((16, 197, 384), (1, 1601, 1024), (1, 2305, 384), (1, 4097, 384))
READING = plain.Reading(kappa=0.5, tau=150.0, gate="zero", redundancy=True)


def _ways_of_attention(images: int, heads: int, tokens: int) -> dict[str, Callable[[], object]]:
    x = torch.randn(images, tokens, 3 * heads * HEAD)
    q, k, v = x.view(images, tokens, 3, heads, HEAD).permute(2, 0, 3, 1, 4).unbind(0)
    bias, scale = attention.size_bias(1 + torch.rand(images, tokens), q.dtype), HEAD**-0.5

    def summed(name: str) -> object:
        with backend(name):
            return attention.summed_attention(q, k, v, None, scale)

    def whole() -> Tensor:
        return attention.column_sums(attention.mapped_attention(q, k, v, None, scale)[1])

    return {
        "fused, no sums": lambda: attention.fused_attention(q, k, v, None, scale),
        "fused, no sums, log s as a mask": lambda: attention.fused_attention(q, k, v, bias, scale),
        "sums of the whole map": whole,
        "sums in blocks": lambda: summed("plain"),
        "sums by one operator": lambda: summed("auto"),
    }


def _ways_of_transform(images: int, tokens: int, channels: int) -> dict[str, Callable[[], object]]:
    x = torch.randn(images, 1, channels) + 0.8 * torch.randn(images, tokens, channels)  # so that cosines pass the gate
    scores, mass, keep = torch.rand(images, tokens), 1 + torch.rand(images, tokens - 1), 1 + int(RATIO * (tokens - 1))
    layer = (x, x[:, 1:], scores, mass, keep, 1)

    return {
        "products alone": lambda: (x @ x.transpose(1, 2))[:, :keep] @ x,
        "plain": lambda: plain.whole(*layer, READING)[0],
        "in blocks": lambda: plain.in_blocks(*layer, READING)[0],
        "one operator": lambda: torch.ops.ttf.transform(*layer, *READING.options)[0],
    }


def _medians(ways: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Milliseconds of each way, all of them in every round, the first round left out."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(1 + rounds):
        for name, run in ways.items():
            begin = time.perf_counter()
            run()
            if number:
                times[name].append(1e3 * (time.perf_counter() - begin))
    return {name: round(statistics.median(values), 2) for name, values in times.items()}


@torch.inference_mode()
def operators(rounds: int = 15) -> list[Row]:
    """Time them on the CPU, in float32, with the threads that torch has.

    Returns:
        Rows: operator, shape, way, median_ms.

    Raises:
        ValueError: the operators of ``ttf.ops.native`` are not compiled, or switched off.
    """
    if not native.loaded():
        raise ValueError("the compiled operators are missing: run python -m ttf.ops.native, without TTF_NATIVE=0")
    cases = [("attention", shape) for shape in ATTENTION] + [("transform", shape) for shape in TRANSFORM]
    rows: list[Row] = []
    for operator, shape in track(cases, "timing operators"):
        size = " x ".join(str(number) for number in shape)
        times = _medians((_ways_of_attention if operator == "attention" else _ways_of_transform)(*shape), rounds)
        rows += [{"operator": operator, "shape": size, "way": way, "median_ms": ms} for way, ms in times.items()]
    return rows
