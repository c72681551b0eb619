"""Cost of several methods in one interleaved run: speed beside what the multiply-accumulates promise, memory."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from functools import cache, partial
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

import ttf
from ttf import api, hosts
from ttf.bench import modes
from ttf.bench.arithmetic import arithmetic
from ttf.bench.budget import anchor, matched
from ttf.bench.entries import Contest, contests
from ttf.building import build
from ttf.data.transforms import preprocessing
from ttf.measure.memory import peak_mib
from ttf.measure.provenance import provenance
from ttf.measure.throughput import FEWEST_ROUNDS, WARM_UP
from ttf.results.speed import BASE, Row
from ttf.results.store import signature
from ttf.tasks.options import pick_device, pick_dtype

LARGEST_BATCH = 16
SWEEP = {"cpu": (1, 8, 32), "cuda": (1, 8, 32, 128, 256)}  # batches by type of device
GMACS_PER_BATCH = 75.0  # about a second of two CPU cores: batch 16 of DeiT-S, 1 of ViT-H
UNKNOWN = math.nan  # a peak that torch's allocator does not see


def _batch_for(gmacs: float) -> int:
    """A power of two of images that makes a forward pass long enough to time, and not longer."""
    batch = LARGEST_BATCH
    while batch > 1 and batch * gmacs > GMACS_PER_BATCH:
        batch //= 2
    return batch


def _tokens(model: nn.Module, images: Tensor) -> int:
    """Tokens that enter the blocks, prefix tokens included."""
    host = hosts.find(model)
    return host.prefix(model) + math.prod(host.grid(model, (images.shape[-2], images.shape[-1])))


@dataclass(frozen=True)
class Timing:
    """One interleaved run of a contest: a batch size and a mode on a device.

    Attributes:
        cfg: the composed config of ``scripts/benchmark.py``.
        contest: who runs; open contestants are settled by ``settle`` when it is their turn, since that takes a while.
        settle: gives the contest without open contestants.
        device: where.
        known: provenance.
        batch: of the config; None: chosen by the cost of the model.
        mode: one of ``ttf.bench.modes.MODES``.
    """

    cfg: DictConfig
    contest: Contest
    settle: Callable[[], Contest]
    device: torch.device
    known: dict[str, Any]
    batch: int | None
    mode: str

    @property
    def label(self) -> str:
        """In words."""
        size = [f"{self.contest.pixels} pixels"] if self.contest.pixels else []
        batch = [f"batch {self.batch}"] if self.batch else []
        ways = f"{len(self.contest.contestants)} ways"
        return ", ".join([self.contest.model.name, *size, *batch, self.mode, ways])

    @property
    def settings(self) -> str:
        """What rows of this run have in common: the same run again gives the same."""
        ways = [[c.title, str(c.options), c.experiments] for c in self.contest.contestants]
        place = [self.known["device"], self.known["versions"]["torch"], self.cfg.dtype, self.batch, self.mode]
        return signature({"network": OmegaConf.to_container(self.contest.model.network), "ways": ways, "place": place})

    def rows(self) -> list[Row]:
        """Measure; weights are random.

        Raises:
            ValueError: the uncompressed model, or the only other one, cannot be compiled or exported in this mode.
        """
        contest = self.settle()
        models, size = self._models(contest, self.device)
        count = self.batch or _batch_for(ttf.measure.gmacs(models[BASE], size))
        images = torch.randn(count, *size).to(self.device, pick_dtype(self.cfg.dtype))
        costs = self._costs(contest, models, images)
        try:
            speeds = self._speeds(models, images)
        finally:
            torch.compiler.reset()
        like = anchor(self.contest)
        target = None if like is None else costs[like.title]["gmacs"]
        common = self._common(models[BASE], images)
        return [
            {"model": contest.model.name, "method": c.title, "experiments": " ".join(c.experiments)}
            | _together(costs[c.title], costs[BASE], target, speeds[c.title])
            | common
            for c in contest.contestants
            if c.title in speeds
        ]

    def _costs(self, contest: Contest, models: dict[str, nn.Module], images: Tensor) -> dict[str, Any]:
        """Counted on the timed images, for the number of tokens may depend on these.

        On the CPU, since the counter sees operators alone and a GPU may run kernels instead.
        """
        cpu = torch.device("cpu")
        counting = models if self.device == cpu else self._models(contest, cpu)[0]
        return {title: arithmetic(model, images.to(cpu)) for title, model in counting.items()}

    def _models(self, contest: Contest, device: torch.device) -> tuple[dict[str, nn.Module], tuple[int, ...]]:
        torch.manual_seed(self.cfg.seed)
        model = build(contest.model.network).eval().to(device, pick_dtype(self.cfg.dtype))
        ways = {c.title: api.twin(model) for c in contest.contestants}
        for c in contest.contestants:
            if c.options is not None:
                ttf.apply(ways[c.title], **c.options)
        return ways, preprocessing(model).input_size

    def _speeds(self, models: dict[str, nn.Module], images: Tensor) -> dict[str, Row]:
        ready = self._ready(models, images)
        errors = {t: {"max_error": m.error} if isinstance(m, modes.Exported) else {} for t, m in ready.items()}
        hidden = modes.holds_memory(self.mode, self.device)
        peaks = {title: UNKNOWN if hidden else peak_mib(model, images) for title, model in ready.items()}
        # whose peak was measured has run on these images twice
        warm_up = WARM_UP if hidden else 0
        speeds = ttf.measure.interleaved(ready, images, self.cfg.rounds, self.cfg.seconds, warm_up)
        return {t: {**_speed(speeds[t]), "peak_mib": round(peaks[t], 1), **errors[t]} for t in ready}

    def _ready(self, models: dict[str, nn.Module], images: Tensor) -> dict[str, nn.Module]:
        """The models as they are timed, without those that this mode cannot run: a warning says why."""
        ready: dict[str, nn.Module] = {}
        for title, model in models.items():
            try:
                ready[title] = modes.ready(model, self.mode, images, title)
            except ValueError as error:
                if title == BASE or len(models) == 2:
                    raise
                warnings.warn(f"{self.label}: {error}", stacklevel=2)
        return ready

    def _common(self, base: nn.Module, images: Tensor) -> Row:
        """What all rows of the run share."""
        known, (height, width) = self.known, images.shape[-2:]
        return {
            "params_m": round(ttf.measure.params_m(base), 4), "tokens": _tokens(base, images),
            "pixels": str(height) if height == width else f"{height}x{width}", "batch": len(images), "mode": self.mode,
            "contest": self.contest.kind, "settings": self.settings, "dtype": self.cfg.dtype, "device": known["device"],
            "attention": known["attention"], "operators": self._operators(), "torch": known["versions"]["torch"],
            "git": known["git"]["sha"], "dirty": known["git"]["dirty"], "date": date.today().isoformat(),
        }  # fmt: skip

    def _operators(self) -> str:
        return "plain operators" if self.mode == "onnx" else str(self.known["operators"])


def _together(cost: dict[str, Any], base: dict[str, Any], target: Any, speed: Row) -> Row:
    """Cost and speed of one contestant, and how they compare with the uncompressed model's and the anchor's."""
    possible = base["gmacs"] / cost["gmacs"]
    counts: Row = {name: value if value == "" else round(value, 4) for name, value in cost.items()}
    like = "" if target is None or cost is base else round(cost["gmacs"] / target, 4)
    return {
        **counts, "gmacs_of_anchor": like, **speed,
        "mac_ratio": round(possible, 3), "of_mac_ratio": round(speed["speed_up"] / possible, 3),
    }  # fmt: skip


def _speed(speed: ttf.measure.Speed) -> Row:
    return {
        "images_per_s": round(speed.images_per_s, 2), "median_ms": round(1e3 * speed.median_s, 2),
        "low_ms": round(1e3 * speed.low_s, 2), "high_ms": round(1e3 * speed.high_s, 2),
        "speed_up": round(speed.speed_up, 3), "rounds": speed.rounds,
    }  # fmt: skip


def _batches(batch: Any, device: torch.device) -> list[int | None]:
    """Batch sizes of the config: a list, "sweep", or None: one, chosen by the model's cost.

    Raises:
        ValueError: another word.
    """
    if not isinstance(batch, str):
        return list(batch or [None])
    if batch != "sweep":
        raise ValueError(f"batch must be a list, [1,8], or sweep or null, got {batch!r}")
    return list(SWEEP.get(device.type, SWEEP["cpu"]))


def timings(cfg: DictConfig) -> Iterator[Timing]:
    """The runs that ``scripts/benchmark.py`` asks for.

    Args:
        cfg: its composed config.

    Raises:
        ValueError: nothing to compare, fewer than 5 rounds, an unknown mode, dtype or device, or a mode that needs
            another device or an extra.
    """
    device = pick_device(cfg.device)
    dtype = pick_dtype(cfg.dtype)
    modes.check(list(cfg.modes), device, cfg.dtype)
    if cfg.rounds < FEWEST_ROUNDS:
        raise ValueError(f"a median needs at least {FEWEST_ROUNDS} rounds, got {cfg.rounds}")
    known = provenance(device, dtype)
    for contest in contests(cfg):
        settle = cache(partial(matched, contest))
        for mode in cfg.modes:
            for batch in _batches(cfg.batch, device):
                yield Timing(cfg, contest, settle, device, known, batch, mode)
