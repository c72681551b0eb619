"""Speed as ratios: several models interleaved in one run, medians, spread."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

WARM_UP = 2


@dataclass(frozen=True)
class Speed:
    """Times of one model in an interleaved run.

    Attributes:
        images_per_s: batch / median time.
        median_s, low_s, high_s: of one forward pass, in seconds.
        speed_up: median over the rounds of (time of the first model / time of this one) in the same round.
    """

    images_per_s: float
    median_s: float
    low_s: float
    high_s: float
    speed_up: float


def _time(run: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begin = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


def _speed(times: Sequence[float], base: Sequence[float], batch: int) -> Speed:
    middle = statistics.median(times)
    ratio = statistics.median(b / t for b, t in zip(base, times, strict=True))
    return Speed(batch / middle, middle, min(times), max(times), ratio)


@torch.inference_mode()
def interleaved(models: Mapping[str, nn.Module], images: Tensor, rounds: int = 7) -> dict[str, Speed]:
    """Time several models on the same batch, one after the other in every round.

    Args:
        models: name to model, in evaluation mode, on the device of ``images``; the first is the reference.
        images: (B, 3, H, W).
        rounds: timed rounds after the warm-up, at least 5.

    Raises:
        ValueError: fewer than 5 rounds, or an empty batch.
    """
    if rounds < 5:
        raise ValueError(f"a median needs at least 5 rounds, got {rounds}")
    if images.shape[0] == 0:
        raise ValueError("an empty batch has no speed")
    times: dict[str, list[float]] = {name: [] for name in models}
    for number in range(WARM_UP + rounds):
        for name, model in models.items():
            seconds = _time(lambda model=model: model(images), images.device)  # type: ignore[misc]
            if number >= WARM_UP:
                times[name].append(seconds)
    base = next(iter(times.values()))
    return {name: _speed(values, base, images.shape[0]) for name, values in times.items()}
