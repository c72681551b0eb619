"""Cost of several methods in one interleaved run: speed beside what the multiply-accumulates promise, memory."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import date
from functools import cache, partial
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

import ttf
from ttf import api, hosts
from ttf.bench import modes, parts
from ttf.bench.arithmetic import arithmetic
from ttf.bench.budget import matched, reference
from ttf.bench.counting import Shapes
from ttf.bench.entries import Benchmark, Entry, benchmarks
from ttf.bench.fitting import fitted
from ttf.building import build
from ttf.checks import FEWEST_ROUNDS
from ttf.data.transforms import preprocessing
from ttf.measure.memory import peak_mib
from ttf.measure.provenance import operators_used, provenance
from ttf.measure.throughput import WARM_UP
from ttf.models.patches import CHOICES, linear_patches
from ttf.ops import backend
from ttf.results.costs import BASE, Row
from ttf.results.store import signature
from ttf.tasks.identity import compression_settings
from ttf.tasks.options import pick_device, pick_dtype

LARGEST_BATCH = 16
SWEEP = {"cpu": (1, 8, 32), "cuda": (1, 8, 32, 128, 256)}  # batches by type of device
GMACS_PER_BATCH = 75.0  # about a second of two CPU cores: batch 16 of DeiT-S, 1 of ViT-H
OPERATORS = ("auto", "plain", "triton")
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
USUAL = {"layout": "contiguous", "patches": "conv", "operators": "auto"}
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
    """One interleaved run of a benchmark: a batch size and a mode on a device.

    Attributes:
        cfg: the composed config of ``scripts/benchmark.py``.
        benchmark: who runs, as it is asked for.
        prepare: gives the benchmark with its methods fitted and its budgets matched, when it is its turn: that takes a
            while.
        device: where.
        known: provenance.
        batch: of the config; None: chosen by the cost of the model.
        mode: one of ``ttf.bench.modes.MODES``.
        part: of a vision-language model, one of ``ttf.bench.parts.PARTS``; None: the whole of a model.
    """

    cfg: DictConfig
    benchmark: Benchmark
    prepare: Callable[[], Benchmark]
    device: torch.device
    known: dict[str, Any]
    batch: int | None
    mode: str
    part: str | None = None

    @property
    def label(self) -> str:
        """In words."""
        size = [f"{self.benchmark.pixels} pixels"] if self.benchmark.pixels else []
        batch = [f"batch {self.batch}"] if self.batch else []
        ways = f"{len(self.benchmark.entries)} ways"
        form = [f"{name} {value}" for name, value in self._form.items()]
        return ", ".join([self.benchmark.model.name, *size, *batch, *form, self.cfg.dtype, self.mode, ways])

    @property
    def settings(self) -> str:
        """What rows of this run have in common: the same run again gives the same."""
        entries = self.benchmark.entries
        ways = [[entry.title, compression_settings(entry.options), entry.experiments] for entry in entries]
        place = [self.known["device"], self.known["versions"]["torch"], self.cfg.dtype, self.batch, self.mode]
        network = OmegaConf.to_container(self.benchmark.model.network)
        return signature({"network": network, "ways": ways, "place": place, **self._form})

    @property
    def _form(self) -> dict[str, str]:
        """Layout of the images, form of the patch embedding, choice of operators and part, where not as usual."""
        form = {name: self.cfg[name] for name, usual in USUAL.items() if self.cfg[name] != usual}
        return form | ({"part": self.part} if self.part else {})

    def rows(self) -> list[Row]:
        """Measure; weights are random.

        Raises:
            ValueError: the uncompressed model, or the only other one, cannot be compiled or exported in this mode.
        """
        return self.prepared()()

    def prepared(self) -> Callable[[], list[Row]]:
        """All that comes before the clock: models, what they cost, compiled code; what is returned times them.

        Raises:
            ValueError: see ``rows``.
        """
        with backend(self.cfg.operators):
            return self._prepared()

    def _prepared(self) -> Callable[[], list[Row]]:
        benchmark = self.prepare()
        models, size = self._models(benchmark, self.device)
        count = self.batch or _batch_for(ttf.measure.gmacs(models[BASE], size))
        images = torch.randn(count, *size).to(self.device, pick_dtype(self.cfg.dtype), memory_format=self._layout)
        costs = self._costs(benchmark, models, images)
        try:
            ready = self._ready(models, images)
        except ValueError:
            torch.compiler.reset()
            raise
        return partial(self._timed, benchmark, models, ready, images, costs)

    def _timed(
        self,
        benchmark: Benchmark,
        models: dict[str, nn.Module],
        ready: dict[str, nn.Module],
        images: Tensor,
        costs: Mapping[str, Row],
    ) -> list[Row]:
        with backend(self.cfg.operators):
            try:
                speeds = self._speeds(ready, images)
            finally:
                torch.compiler.reset()
            common = self._size(models[BASE], images) | self._place()
            return [
                _named(benchmark, entry) | row | common | self._operators(models[entry.title])
                for entry, row in self._compared(benchmark, costs, speeds)
            ]

    def _operators(self, model: nn.Module) -> Row:
        """Who ran the operators of a model."""
        plan = api.plan(model)
        used = operators_used(self.device, pick_dtype(self.cfg.dtype), None if plan is None else plan.method)
        return {"operators": "plain operators" if self.mode == "onnx" else used}

    def _compared(
        self, benchmark: Benchmark, costs: Mapping[str, Row], speeds: Mapping[str, Row]
    ) -> Iterator[tuple[Entry, Row]]:
        """The entries that were timed, each with its cost and speed beside those of the others."""
        like = reference(self.benchmark)
        target = None if like is None else costs[like.title]["gmacs"]
        for entry in benchmark.entries:
            if entry.title in speeds:
                yield entry, _together(costs[entry.title], costs[BASE], target, speeds[entry.title])

    def _costs(self, benchmark: Benchmark, models: dict[str, nn.Module], images: Tensor) -> dict[str, Any]:
        """Counted on the timed images, for the number of tokens may depend on these.

        Beside a GPU, and parts, from shapes alone where it does not, else on the CPU: the counter sees operators, no
        kernels.
        """
        cpu = torch.device("cpu")
        plans = [api.plan(model) for model in models.values()]
        fixed = not any(plan is not None and plan.method.adaptive for plan in plans)
        if fixed and (self.part or self.device != cpu):
            shapes = Shapes(benchmark.model.network)
            return {entry.title: shapes.arithmetic(entry.options, self.part) for entry in benchmark.entries}
        counting = models if self.device == cpu else self._models(benchmark, cpu)[0]
        count = partial(parts.cost, name=self.part) if self.part else arithmetic
        return {title: count(model, images.to(cpu)) for title, model in counting.items()}

    def _models(self, benchmark: Benchmark, device: torch.device) -> tuple[dict[str, nn.Module], tuple[int, ...]]:
        torch.manual_seed(self.cfg.seed)
        there: Any = nullcontext() if device.type == "cpu" else device  # a GPU draws a billion weights in no time
        with there:
            model: Any = build(benchmark.model.network).eval()
        model = model.to(device, pick_dtype(self.cfg.dtype), memory_format=self._layout)
        if self.cfg.patches == "linear":
            linear_patches(model)
        ways = {entry.title: api.twin(model) for entry in benchmark.entries}
        for entry in benchmark.entries:
            if entry.options is not None:
                ttf.apply(ways[entry.title], **entry.options)
        return ways, preprocessing(model).input_size

    @property
    def _layout(self) -> torch.memory_format:
        return LAYOUTS[self.cfg.layout]

    def _speeds(self, ready: dict[str, nn.Module], images: Tensor) -> dict[str, Row]:
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
                ready[title] = modes.ready(parts.part(model, self.part), self.mode, images, title)
            except ValueError as error:
                if title == BASE or len(models) == 2:
                    raise
                warnings.warn(f"{self.label}: {error}", stacklevel=2)
        return ready

    def _size(self, base: nn.Module, images: Tensor) -> Row:
        """How large model and images are."""
        height, width = images.shape[-2:]
        pixels = str(height) if height == width else f"{height}x{width}"
        params, own = round(ttf.measure.params_m(base), 4), {"answer_tokens": getattr(base, "answer_tokens", "")}
        size = {"params_m": params, "tokens": _tokens(base, images), "pixels": pixels, "batch": len(images)}
        return size | (own if self.part == "answer" else {})

    def _place(self) -> Row:
        """Where and how the run was timed."""
        known = self.known
        run = {"mode": self.mode, "benchmark": self.benchmark.name, "settings": self.settings, "dtype": self.cfg.dtype}
        run |= self._form
        machine = {"device": known["device"], "attention": known["attention"]}
        versions = {"torch": known["versions"]["torch"], "git": known["git"]["sha"], "dirty": known["git"]["dirty"]}
        return {**run, **machine, **versions, "date": date.today().isoformat()}


def _named(benchmark: Benchmark, entry: Entry) -> Row:
    known = {"model": benchmark.model.name, "method": entry.title, "experiments": " ".join(entry.experiments)}
    return known | ({"fitted_on": entry.fitted_on} if entry.fitted_on else {})


def _together(cost: Row, base: Row, target: float | None, speed: Row) -> Row:
    """Cost and speed of one entry, and how they compare with the uncompressed model's and the reference's."""
    possible = base["gmacs"] / cost["gmacs"]
    counts: Row = {name: value if value == "" else round(value, 4) for name, value in cost.items()}
    counts["gmacs_of_reference"] = "" if target is None or cost is base else round(cost["gmacs"] / target, 4)
    efficiency = round(speed["speed_up"] / possible, 3)
    return {**counts, **speed, "mac_ratio": round(possible, 3), "efficiency": efficiency}


def _speed(speed: ttf.measure.Speed) -> Row:
    seconds = {"median_ms": speed.median_s, "low_ms": speed.low_s, "high_ms": speed.high_s}
    times = {name: round(1e3 * value, 2) for name, value in seconds.items()}
    ratio = {"speed_up": round(speed.speed_up, 3), "rounds": speed.rounds}
    return {"images_per_s": round(speed.images_per_s, 2), **times, **ratio}


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


def _prepared(benchmark: Benchmark, seed: int) -> Benchmark:
    return matched(fitted(benchmark, seed))


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
    for name, choices in (("layout", LAYOUTS), ("patches", CHOICES), ("operators", OPERATORS)):
        if cfg[name] not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}, got {cfg[name]!r}")
    if cfg.rounds < FEWEST_ROUNDS:
        raise ValueError(f"a median needs at least {FEWEST_ROUNDS} rounds, got {cfg.rounds}")
    parts.check(cfg)
    known = provenance(device, dtype)
    for benchmark in benchmarks(cfg):
        prepare = cache(partial(_prepared, benchmark, cfg.seed))
        for mode in cfg.modes:
            for batch in _batches(cfg.batch, device):
                for part in cfg.parts or [None]:
                    yield Timing(cfg, benchmark, prepare, device, known, batch, mode, part)
