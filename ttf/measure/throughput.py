"""Speed as ratios: several models interleaved in one run, medians, spread."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ttf.checks import FEWEST_ROUNDS

WARM_UP = 2
SHORTEST = 0.01  # seconds of a GPU that are timed at once


@dataclass(frozen=True)
class Speed:
    """Times of one model in an interleaved run.

    Attributes:
        images_per_s: batch / median time.
        median_s, low_s, high_s: of one forward pass, in seconds.
        speed_up: median over the rounds of (time of the first model / time of this one) in the same round.
        rounds: how many were timed.
    """

    images_per_s: float
    median_s: float
    low_s: float
    high_s: float
    speed_up: float
    rounds: int


def _time(run: Callable[[], object], device: torch.device, passes: int = 1) -> float:
    """Seconds of one pass, the mean of some; on a GPU by its own clock, without the way there and back."""
    if device.type == "cuda":
        return _time_on_gpu(run, passes)
    begin = time.perf_counter()
    for _ in range(passes):
        run()
    return (time.perf_counter() - begin) / passes


def _time_on_gpu(run: Callable[[], object], passes: int) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(passes):
        run()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3 / passes


def _passes(run: Callable[[], object], device: torch.device) -> int:
    """How many passes make one time: one on a CPU, on a GPU enough for its clock."""
    if device.type != "cuda":
        return 1
    return max(1, round(SHORTEST / max(_time(run, device), 1e-6)))


def _speed(times: Sequence[float], base: Sequence[float], batch: int) -> Speed:
    middle = statistics.median(times)
    ratio = statistics.median(b / t for b, t in zip(base, times, strict=True))
    return Speed(batch / middle, middle, min(times), max(times), ratio, len(times))


def _go_on(done: int, rounds: int, begin: float, seconds: float | None) -> bool:
    """Whether there is another timed round: there are always five, and more while time is left."""
    in_time = seconds is None or time.perf_counter() - begin < seconds
    return done < rounds and (done < FEWEST_ROUNDS or in_time)


@torch.inference_mode()
def interleaved(
    models: Mapping[str, nn.Module],
    images: Tensor,
    rounds: int = 7,
    seconds: float | None = None,
    warm_up: int = WARM_UP,
) -> dict[str, Speed]:
    """Time several models on the same batch, one after the other in every round.

    Args:
        models: name to model, in evaluation mode, on the device of ``images``; the first is the reference.
        images: (B, 3, H, W).
        rounds: timed rounds after the warm-up, at least 5.
        seconds: no further round begins after that time, once there are 5; None: all of them.
        warm_up: rounds that are not timed; 0 where the models have run on such a batch before.

    Raises:
        ValueError: fewer than 5 rounds, or an empty batch.
    """
    if rounds < FEWEST_ROUNDS:
        raise ValueError(f"a median needs at least {FEWEST_ROUNDS} rounds, got {rounds}")
    if images.shape[0] == 0:
        raise ValueError("an empty batch has no speed")
    for model in (model for _ in range(warm_up) for model in models.values()):
        model(images)
    times: dict[str, list[float]] = {name: [] for name in models}
    passes = {name: _passes(partial(model, images), images.device) for name, model in models.items()}
    done, begin = 0, time.perf_counter()
    while _go_on(done, rounds, begin, seconds):
        for name, model in models.items():
            times[name].append(_time(partial(model, images), images.device, passes[name]))
        done += 1
    base = next(iter(times.values()))
    return {name: _speed(values, base, images.shape[0]) for name, values in times.items()}
