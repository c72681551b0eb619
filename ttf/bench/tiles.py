"""Other tiles for the Triton kernels, timed on a card beside those of ``ttf.ops.kernels.tiles``."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from rich.progress import track

from ttf.ops.kernels import dispatch
from ttf.ops.plain import Reading
from ttf.results.costs import Row

READING = Reading(kappa=0.5, tau=150.0, gate="zero", redundancy=True)
RATIO = 0.7
# (images, heads, tokens, channels of a head)
ATTENTION = ((256, 6, 138, 64), (256, 6, 97, 64), (64, 16, 200, 80), (16, 16, 1121, 64))
SUMMED = ((256, 6, 197, 64), (64, 16, 250, 80), (16, 16, 1601, 64))
# (images, tokens, channels)
TRANSFORM = ((256, 197, 384), (64, 257, 1280), (16, 1601, 1024))
# rows, columns, depth, warps, stages of a ``Launch``
BLOCKS = ((128, 64, 0, 4, 3), (128, 64, 0, 8, 3), (128, 128, 0, 8, 3), (64, 64, 0, 4, 3), (64, 128, 0, 4, 3))
WHOLE = ((64, 256, 0, 4, 2), (64, 256, 0, 8, 2), (32, 256, 0, 4, 2), (128, 256, 0, 8, 2))
SUMS = ((64, 64, 0, 4, 3), (128, 64, 0, 4, 3), (128, 128, 0, 8, 3), (64, 128, 0, 4, 3))
GRAM = ((64, 64, 64, 4, 3), (128, 128, 32, 8, 3), (128, 128, 64, 8, 3), (64, 64, 32, 4, 4))
DOWN = ((64, 128, 64, 4, 3), (128, 128, 32, 8, 3), (64, 64, 64, 4, 3), (128, 64, 64, 4, 3))
ASSIGN = ((16, 256, 0, 4, 2), (8, 256, 0, 4, 2), (32, 256, 0, 8, 2), (16, 512, 0, 8, 2))
Run = Callable[[], object]


def is_half(dtype: torch.dtype) -> bool:
    """Whether tiles are looked for in a dtype."""
    return dtype in (torch.float16, torch.bfloat16)


def _attention(shape: tuple[int, ...], summed: bool, device: torch.device, dtype: torch.dtype) -> Run:
    images, heads, tokens, dim = shape
    x = torch.randn(images, tokens, 3, heads, dim, device=device, dtype=dtype)
    q, k, v = x.permute(2, 0, 3, 1, 4)
    bias = torch.rand(images, 1, 1, tokens, device=device).to(dtype)
    if summed:
        return lambda: dispatch.summed_attention(q, k, v, bias, dim**-0.5, 0)
    return lambda: dispatch.attention(q, k, v, bias, dim**-0.5)


def _transform(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Run:
    images, tokens, channels = shape
    x = torch.randn(images, 1, channels, device=device) + 0.8 * torch.randn(images, tokens, channels, device=device)
    x, scores = x.to(dtype), torch.rand(images, tokens, device=device)
    mass, keep = 1 + torch.rand(images, tokens - 1, device=device), 1 + int(RATIO * (tokens - 1))
    return lambda: dispatch.transform(x, x[:, 1:], scores, mass, keep, 1, READING)


@contextmanager
def _instead(table: Any, key: Any, launch: Any) -> Iterator[None]:
    """Another entry of a table (or attribute of a module) for a while."""
    before = table[key] if isinstance(table, dict) else getattr(table, key)
    put = table.__setitem__ if isinstance(table, dict) else lambda name, value: setattr(table, name, value)
    put(key, launch)
    try:
        yield
    finally:
        put(key, before)


def _median_ms(run: Run, rounds: int) -> float:
    """Of a GPU, the first pass left out: it compiles."""
    run()
    times = []
    for _ in range(rounds):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(float(begin.elapsed_time(end)))
    return statistics.median(times)


def _tried(
    run: Run, table: Any, key: Any, name: str, candidates: tuple[tuple[int, ...], ...], rounds: int
) -> list[Row]:
    """A row for each candidate."""
    from ttf.ops.kernels.tiles import Launch

    rows: list[Row] = []
    for numbers in candidates:
        row: Row = {"tiles": name, "launch": " ".join(map(str, numbers)), "ms": "", "why": ""}
        with _instead(table, key, Launch(*numbers)):
            try:
                row["ms"] = round(_median_ms(run, rounds), 4)
            except Exception as error:  # more shared memory than the card has, and what else compilers raise
                row["why"] = type(error).__name__
        rows.append(row)
    return rows


@torch.inference_mode()
def tiles(device: torch.device, dtype: torch.dtype, rounds: int = 15) -> list[Row]:
    """Time other tiles, one kernel at a time.

    Args:
        device: a GPU.
        dtype: half precision.
        rounds: of each.

    Returns:
        Rows: operator, shape, tiles (which table), launch (rows, columns, depth, warps, stages), ms, or why there are
        none.
    """
    from ttf.ops.kernels import attention, gram, sums, transform
    from ttf.ops.kernels.tiles import head_key

    half, found = is_half(dtype), list[tuple[str, tuple[int, ...], Run, list[Any]]]()
    for summed, shapes in ((False, ATTENTION), (True, SUMMED)):
        for shape in shapes:
            key = head_key(torch.empty(1, 1, 1, shape[-1], dtype=dtype, device="meta"))
            whole = [(attention.WHOLE, key, "whole", WHOLE)]
            blocks = [(attention.KEYS, key, "keys", BLOCKS), *([(sums.SUMS, key, "sums", SUMS)] if summed else [])]
            run = _attention(shape, summed, device, dtype)
            found.append(("summed" if summed else "attention", shape, run, whole if shape[2] <= 256 else blocks))
    of_transform: list[Any] = [(gram.GRAM, half, "gram", GRAM), (transform.DOWN, half, "down", DOWN)]
    of_transform.append((transform, "ASSIGN", "assign", ASSIGN))
    found += [("transform", shape, _transform(shape, device, dtype), of_transform) for shape in TRANSFORM]
    return [
        {"operator": operator, "shape": " x ".join(map(str, shape)), **row}
        for operator, shape, run, tables in track(found, "trying tiles")
        for table, key, name, candidates in tables
        for row in _tried(run, table, key, name, candidates, rounds)
    ]
