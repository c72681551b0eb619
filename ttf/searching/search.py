"""``ttf.search``: the best numbers of tokens for a model and a budget, by its outputs on a few unlabelled images."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from random import Random
from statistics import fmean, stdev
from typing import Any

from torch import Tensor, nn

from ttf import hosts
from ttf.arguments import Arguments, check_options
from ttf.budget import Costs, Counter, check_budget
from ttf.core.plan import Plan
from ttf.measure.provenance import versions
from ttf.methods.base import Method
from ttf.models.weights import fingerprint
from ttf.searched import Searched, check_writable, load, save
from ttf.searching.log import Measurements, log_of
from ttf.searching.proposals import Counts, Space, changed
from ttf.searching.runs import OBJECTIVES, Objective, Runs
from ttf.searching.surrogate import guesses
from ttf.tasks.base import progress as bar
from ttf.tasks.identity import compression_settings

PARENTS = 6  # the best schedules, which are changed
ASKED = 24  # children that are guessed at for each one that is measured
BLIND = 3  # every so many children are measured without a guess
FEWEST_IMAGES = 8
WIDTHS = (0.05, 0.35)  # of changes, smallest and largest
FREE = 1e-5  # change of the outputs by rounding alone


@dataclass(frozen=True)
class Settings:
    """How a search goes.

    Attributes:
        evaluations: schedules that are tried, at most.
        seed: of its random numbers.
        patience: schedules without a better one on the held-out images, after which it stops; None: a quarter of the
            evaluations, at least 30.
        batch: images that go through the model together.
        memory: MiB that may be kept of former runs.
        start: schedules or files of schedules to start from, beside the usual ones.
        out: file for the schedule; beside it, OUT.log, what was measured.
        progress: whether a bar shows.
        provenance: what else the file says.
    """

    evaluations: int = 200
    seed: int = 0
    patience: int | None = None
    batch: int = 32
    memory: int = 512
    start: Sequence[Searched | str | Path] = ()
    out: str | Path | None = None
    progress: bool = True
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("evaluations", "batch", "memory"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be a whole number, at least 1, got {value!r}")
        if self.out is not None:
            check_writable(self.out)

    @property
    def waits(self) -> int:
        """Schedules without a better one after which it stops."""
        return self.patience if self.patience is not None else max(30, self.evaluations // 4)

    @property
    def log(self) -> Path | None:
        """The file of measurements."""
        return None if self.out is None else log_of(self.out)


class Search:
    """One search; see ``ttf.search``."""

    def __init__(
        self, model: nn.Module, plan: Plan, images: Tensor, budget: float, objective: Objective, how: Settings
    ):
        self.how, self.plan, self.budget = how, plan, budget
        batch = min(how.batch, max(1, len(images) // 4))
        self.batches = len(images) // batch  # what is left over is not looked at
        images = images[: self.batches * batch]
        self.held = range(self.batches - self.batches // 4, self.batches)
        self.searched = range(self.batches - self.batches // 4)
        self.counter = Counter(model, plan)
        self.runs = Runs(model, plan, images, objective, batch, how.memory)
        costs = Costs(self.counter)
        if not costs.exact:
            raise ValueError(
                f"{type(plan.method).__name__} does not keep the numbers of tokens that it is asked for, so none can "
                "be searched: use ratio and blocks"
            )
        space = Space(costs, budget, False)
        self.space = Space(costs, budget, self._tail_is_free(space))
        self.known = Measurements(how.log, self._identity(model, images, objective))
        self.draw, self.width = Random(how.seed), 0.2
        self.values: dict[Counts, dict[int, list[float]]] = {}
        self.whole: dict[Counts, float] = {}  # means over all searched batches
        self.steps: list[tuple[Counts, float, float]] = []  # best so far: searched and held-out means

    def _identity(self, model: nn.Module, images: Tensor, objective: Objective) -> dict[str, Any]:
        """What measured values depend on."""
        content = images.double()
        return {
            "weights": fingerprint(model),
            "method": compression_settings({"method": self.plan.method, "ratio": 1.0})["method"],
            "recovery": self.plan.recovery,
            "images": [*images.shape, round(content.mean().item(), 9), round(content.std().item(), 9)],
            "objective": objective,
            "batch": len(images) // self.batches,
        }

    def _schedule(self, counts: Counts) -> Searched:
        whole = (self.space.patches,) * self.counter.first
        return Searched((*whole, *counts), self.space.patches)

    def _tail_is_free(self, space: Space) -> bool:
        """Whether patch tokens may go behind the last attention: where the output is the same without them."""
        some = space.fitted([space.patches / 2] * space.length) or space.counts([space.patches / 2] * space.length)
        self.space = space
        before, after = (self.runs.damage(self._schedule((*some[:-1], tail)), 0) for tail in (some[-1], 1))
        return all(abs(a - b) <= FREE * max(1.0, abs(a)) for a, b in zip(before, after, strict=True))

    def _measured(self, counts: Counts, batches: Iterable[int]) -> list[float]:
        """Values of a schedule on some batches, image by image."""
        own = self.values.setdefault(counts, {})
        for batch in batches:
            if batch not in own:
                measure = partial(self.runs.damage, self._schedule(counts), batch)
                own[batch] = self.known.value(counts, batch, measure)
        return [value for batch in batches for value in own[batch]]

    @property
    def best(self) -> Counts:
        """The best one on the searched images."""
        return min(self.whole, key=lambda counts: self.whole[counts])

    def _try(self, counts: Counts) -> float:
        """Measure a schedule, on an eighth, a quarter and half of the images first; what is clearly worse gets no more.

        Returns:
            The logarithm of its value over all searched images; where it was given up, an estimate by what the best
            one has on the same images.
        """
        for share in (8, 4, 2):
            some = self.searched[: math.ceil(len(self.searched) / share)]
            if not self.whole or len(some) == len(self.searched):
                continue
            ours, best = self._measured(counts, some), self._measured(self.best, some)
            apart = [a - b for a, b in zip(ours, best, strict=True)]
            if fmean(apart) > stdev(apart) / math.sqrt(len(apart)):
                return _log(self.whole[self.best]) + _log(fmean(ours)) - _log(fmean(best))
        self.whole[counts] = fmean(self._measured(counts, self.searched))
        return _log(self.whole[counts])

    def _children(self) -> list[Counts]:
        parents = sorted(self.whole, key=lambda counts: self.whole[counts])[:PARENTS]
        found = (changed(parents, self.draw, self.width, self.space) for _ in range(4 * ASKED))
        return list(dict.fromkeys(one for one in found if one is not None and one not in self.values))[:ASKED]

    def run(self, label: str) -> Searched:
        """The best schedule."""
        seeds = self._seeds()
        tried: list[tuple[Counts, float]] = []
        since = 0
        with self._bar() as shown:
            task = shown.add_task(label, total=self.how.evaluations) if shown else None
            while len(tried) < self.how.evaluations and since < self.how.waits:
                counts = seeds.pop(0) if seeds else self._next(tried)
                if counts is None:
                    break
                tried.append((counts, self._try(counts)))
                since = 0 if self._step(counts) else since + 1
                if shown and task is not None:
                    shown.update(task, advance=1, description=f"{label}, {self._said()}")
        self.tried = len(tried)
        return self._schedule(self.answer)

    def _seeds(self) -> list[Counts]:
        depth = self.plan.depth
        given = [one if isinstance(one, Searched) else load(one) for one in self.how.start]
        for one in given:
            one.check(depth)
        exact = [[self.space.patches * c / one.patches for c in one.counts[self.counter.first : -1]] for one in given]
        seeds = self.space.seeds(self.plan.host.default_blocks(depth))
        seeds += [counts for one in exact if (counts := self.space.fitted(one)) is not None]
        if not seeds:
            raise ValueError(
                f"no schedule brings this model to {self.budget:g} of its multiply-accumulates: take a larger budget"
            )
        return list(dict.fromkeys(seeds))

    def _next(self, tried: Sequence[tuple[Counts, float]]) -> Counts | None:
        children = self._children()
        if not children:
            return None
        if len(tried) % BLIND == 0:
            return children[0]
        guessed = guesses([c for c, _ in tried], [v for _, v in tried], children, self.space.patches)
        return children[min(range(len(children)), key=guessed.__getitem__)]

    def _step(self, counts: Counts) -> bool:
        """Note a schedule that is the best so far; whether it is the best on the held-out images, too."""
        if counts not in self.whole or counts != self.best:
            self.width = max(WIDTHS[0], self.width * 0.97)
            return False
        self.width = min(WIDTHS[1], self.width * 1.1)
        held = fmean(self._measured(counts, self.held))
        better = not self.steps or held < min(step[2] for step in self.steps)
        self.steps.append((counts, self.whole[counts], held))
        return better

    @property
    def answer(self) -> Counts:
        """Of all that were the best one for a while, the best on searched and held-out images together."""
        share = len(self.held) / self.batches
        return min(self.steps, key=lambda step: (1 - share) * step[1] + share * step[2])[0]

    def provenance(self, schedule: Searched) -> dict[str, Any]:
        """What the file says of where a schedule comes from."""
        _, searched, held = next(step for step in self.steps if step[0] == self.answer)
        return {
            "budget": self.budget,
            "macs": round(self.counter.share(schedule), 5),
            **self.how.provenance,
            "method": self.known.identity["method"],
            "objective": self.known.identity["objective"],
            "searched": round(searched, 6),
            "held_out": round(held, 6),
            "equal_cuts": {"searched": round(self.steps[0][1], 6), "held_out": round(self.steps[0][2], 6)},
            "images": self.known.identity["images"][0],
            "evaluations": self.tried,
            "seed": self.how.seed,
            "weights": self.known.identity["weights"],
            "versions": versions(),
        }

    def _said(self) -> str:
        _, searched, held = self.steps[-1]
        return f"best {searched:.3g} (held out {held:.3g}, at first {self.steps[0][1]:.3g})"

    def _bar(self) -> AbstractContextManager[Any]:
        return bar("schedules") if self.how.progress else nullcontext()


def _log(value: float) -> float:
    return math.log(max(value, 1e-12))


def _checked(images: Any, objective: str) -> None:
    if not isinstance(images, Tensor) or images.ndim != 4 or len(images) < FEWEST_IMAGES:
        given = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"images must be a tensor (n, 3, H, W) of at least {FEWEST_IMAGES} images, got {given}")
    if not images.is_floating_point():
        raise ValueError(f"images must be preprocessed as for the model, floating-point numbers, got {images.dtype}")
    if objective not in OBJECTIVES:
        raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}, got {objective!r}")


def search(
    model: nn.Module,
    images: Tensor,
    budget: float,
    method: str | Method = "token_transform",
    *,
    objective: Objective = "kl",
    recover: bool | str = False,
    recover_at: str | None = None,
    preset: str | None = None,
    settings: Settings | None = None,
    evaluations: int | None = None,
    seed: int | None = None,
    out: str | Path | None = None,
    **options: Any,
) -> Searched:
    """The best numbers of tokens for a model, a method and a budget, by a few unlabelled images.

    No labels and no gradients: what is compared are the outputs with those of the uncompressed model. A quarter of the
    images is held out, and the search stops when these no longer gain. The same seed gives the same schedule. With
    ``out`` it goes on where it was interrupted.

    Args:
        model: a supported host; it stays as it is.
        images: (n, 3, H, W), preprocessed, at least 8; 64 to 256 do.
        budget: share of the model's multiply-accumulates that may be left for images of its own size, in (0, 1).
        method: as for ``ttf.apply``, with its options.
        objective: "kl" of the class probabilities (per pixel of dense models), or "error", the relative error of the
            outputs, for models without classes.
        recover, recover_at, preset: as for ``ttf.apply``.
        settings: everything else, see ``Settings``.
        evaluations, seed, out: of the settings, for short.
        **options: fields of the method.

    Returns:
        A schedule for ``ttf.apply(model, schedule=...)``; ``out`` is a file that it takes as well.

    Raises:
        ValueError: as ``ttf.apply``; no schedule is within the budget, or the method does not keep given numbers of
            tokens.
    """
    _checked(images, objective)
    given: dict[str, Any] = {"evaluations": evaluations, "seed": seed, "out": out}
    how = replace(settings or Settings(), **{name: value for name, value in given.items() if value is not None})
    if check_budget(budget) == 1.0:
        raise ValueError("a budget of 1 leaves nothing to search")
    host = hosts.find(model)
    told = Arguments(None, None, None, None, recover, recover_at)
    plan = told.plan(model, host, check_options(method, preset, options))
    found = Search(model, plan, images, budget, objective, how)
    schedule = found.run(f"{type(plan.method).__name__}, budget {budget:g}")
    if how.out is not None:
        save(schedule, how.out, found.provenance(schedule))
    return schedule
