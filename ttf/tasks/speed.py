"""Cost of several methods in one interleaved run: speed beside what the multiply-accumulates promise, memory."""

from __future__ import annotations

from collections.abc import Iterator, Set
from datetime import date
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

import ttf
from ttf import api
from ttf.building import build
from ttf.data.transforms import preprocessing
from ttf.measure import norm_gops
from ttf.measure.memory import peak_mib
from ttf.measure.provenance import provenance
from ttf.results.speed import Row
from ttf.results.store import signature
from ttf.tasks.contest import BASE, Contest, Contestant, contests
from ttf.tasks.options import pick_device, pick_dtype

MODES = ("eager", "compiled")
LARGEST_BATCH = 16
GMACS_PER_BATCH = 75.0  # about a second of two CPU cores: batch 16 of DeiT-S, 1 of ViT-H


def _batch_for(gmacs: float) -> int:
    """A power of two of images that makes a forward pass long enough to time, and not longer."""
    batch = LARGEST_BATCH
    while batch > 1 and batch * gmacs > GMACS_PER_BATCH:
        batch //= 2
    return batch


def _tokens_alone(model: nn.Module, images: Tensor, whole: float) -> float:
    """GMACs of the same numbers of tokens without the method's own arithmetic: tokens dropped at random."""
    plan = api.plan(model)
    if plan is None:
        return whole
    with ttf.applied(api.twin(model), "random_pruning", schedule=plan.schedule) as dropping:
        return ttf.measure.gmacs(dropping, images.shape, images)


def _arithmetic(model: nn.Module, images: Tensor) -> dict[str, float]:
    """GMACs an image: all, those of the numbers of tokens alone, and what fvcore counts for norms."""
    whole = ttf.measure.gmacs(model, images.shape, images)
    parts = {"gmacs": whole, "gmacs_tokens": _tokens_alone(model, images, whole)}
    parts["gmacs_norms"] = norm_gops(model, images)
    return {name: value / len(images) for name, value in parts.items()}


def _ready(model: nn.Module, mode: str, images: Tensor) -> nn.Module:
    """The model as it is timed. Raises ``ValueError`` where it cannot be compiled here."""
    if mode == "eager":
        return model
    compiled: Any = torch.compile(model, dynamic=False)
    try:
        with torch.inference_mode():
            compiled(images)
    except Exception as error:  # dynamo, inductor and the compilers that they call raise many
        reason = str(error).strip().splitlines()[0][:200]
        raise ValueError(f"torch.compile fails here ({reason}): leave out modes=[compiled]") from error
    return compiled


class _Timing:
    """One contest on one device."""

    def __init__(self, cfg: DictConfig, contest: Contest, device: torch.device, known: dict[str, Any]) -> None:
        self.cfg, self.contest, self.device, self.known = cfg, contest, device, known
        self.dtype = pick_dtype(cfg.dtype)

    def settings(self, batch: int | None, mode: str) -> str:
        """What rows of this contest have in common: the same contest again gives the same."""
        ways = [[c.title, str(c.options), c.experiments] for c in self.contest.contestants]
        place = [self.known["device"], self.known["versions"]["torch"], self.cfg.dtype, batch, mode]
        return signature({"network": OmegaConf.to_container(self.contest.model.network), "ways": ways, "place": place})

    def runs(self) -> list[tuple[int | None, str]]:
        """Pairs (batch size or None to choose it, mode)."""
        return [(batch, mode) for mode in self.cfg.modes for batch in (self.cfg.batch or [None])]

    def _models(self) -> tuple[dict[str, nn.Module], tuple[int, ...]]:
        torch.manual_seed(self.cfg.seed)
        model = build(self.contest.model.network).eval().to(self.device, self.dtype)
        ways = {c.title: api.twin(model) for c in self.contest.contestants}
        for c in self.contest.contestants:
            if c.options is not None:
                ttf.apply(ways[c.title], **c.options)
        return ways, preprocessing(model).input_size

    def rows(self, skip: Set[str]) -> Iterator[Row]:
        """Measure whatever is not in ``skip``, settings of earlier contests; weights are random."""
        wanted = [(batch, mode) for batch, mode in self.runs() if self.settings(batch, mode) not in skip]
        if not wanted:
            return
        models, size = self._models()
        for batch, mode in wanted:
            count = batch or _batch_for(ttf.measure.gmacs(models[BASE], size))
            images = torch.randn(count, *size).to(self.device, self.dtype)
            common = {"batch": count, "mode": mode, "settings": self.settings(batch, mode)}
            for row in self._measured(models, images, mode):
                yield {**row, **common, **self._place()}

    def _measured(self, models: dict[str, nn.Module], images: Tensor, mode: str) -> Iterator[Row]:
        # counted on the timed images: the number of tokens may depend on these
        arithmetic = {title: _arithmetic(model, images) for title, model in models.items()}
        ready = {title: _ready(model, mode, images) for title, model in models.items()}
        peaks = {title: peak_mib(model, images) for title, model in ready.items()}
        speeds = ttf.measure.interleaved(ready, images, self.cfg.rounds)
        params = round(ttf.measure.params_m(models[BASE]), 4)
        for c in self.contest.contestants:
            possible = arithmetic[BASE]["gmacs"] / arithmetic[c.title]["gmacs"]
            cost = {name: round(value, 4) for name, value in arithmetic[c.title].items()}
            speed = {**_speed(speeds[c.title], possible), "peak_mib": round(peaks[c.title], 1)}
            yield {**self._names(c), "params_m": params, **cost, **speed}
        torch.compiler.reset()

    def _names(self, c: Contestant) -> Row:
        return {"model": self.contest.model.name, "method": c.title, "experiments": " ".join(c.experiments)}

    def _place(self) -> Row:
        known = self.known
        return {
            "rounds": self.cfg.rounds, "dtype": self.cfg.dtype, "device": known["device"],
            "attention": known["attention"], "torch": known["versions"]["torch"], "git": known["git"]["sha"],
            "dirty": known["git"]["dirty"], "date": date.today().isoformat(),
        }  # fmt: skip


def _speed(speed: ttf.measure.Speed, possible: float) -> Row:
    return {
        "images_per_s": round(speed.images_per_s, 2), "median_ms": round(1e3 * speed.median_s, 2),
        "low_ms": round(1e3 * speed.low_s, 2), "high_ms": round(1e3 * speed.high_s, 2),
        "speed_up": round(speed.speed_up, 3), "mac_ratio": round(possible, 3),
        "of_mac_ratio": round(speed.speed_up / possible, 3),
    }  # fmt: skip


def measure(cfg: DictConfig, skip: Set[str] = frozenset()) -> Iterator[list[Row]]:
    """Rows of the contests that ``scripts/benchmark.py`` asks for, one list a model; weights are random.

    Args:
        cfg: its composed config.
        skip: ``settings`` of rows that need not be measured again.

    Raises:
        ValueError: nothing to compare, fewer than 5 rounds, an unknown mode, dtype or device.
    """
    unknown = [mode for mode in cfg.modes if mode not in MODES]
    if unknown or not cfg.modes:
        raise ValueError(f"modes must be some of {', '.join(MODES)}, got {list(cfg.modes)}")
    device = pick_device(cfg.device)
    known = provenance(device)
    for contest in contests(cfg):
        yield list(_Timing(cfg, contest, device, known).rows(skip))
