"""What ``ttf.apply`` was told, checked: types, ranges, and whether every argument is read by someone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from torch import nn

from ttf import methods
from ttf.budget import budgeted, check_budget
from ttf.core.entry import blocks_of
from ttf.core.host import Host
from ttf.core.plan import Plan
from ttf.methods.base import Method
from ttf.ops.reduction import RECOVERIES, Recovery
from ttf.schedule import KeepRatio, Late, Schedule, check_whole, early_blocks, late_blocks
from ttf.searched import Searched, is_file, load

RATIO = 0.7
AUTO = "auto"  # the schedule that follows from a budget
# what models with windows have a choice of, and what they take unless told
HOST_OPTIONS = {"windows": "places", "shift": "kept", "reduce_after": "attention"}


def _recovery(recover: Any) -> Recovery | None:
    if isinstance(recover, bool):
        return "nearest" if recover else None
    if not isinstance(recover, str) or recover not in RECOVERIES:
        raise ValueError(f"recover must be True, False or one of {', '.join(RECOVERIES)}, got {recover!r}")
    return recover  # type: ignore[return-value]


def _blocks(blocks: Any) -> tuple[int, ...] | None:
    if blocks is None:
        return None
    if isinstance(blocks, str) or not isinstance(blocks, Iterable) or not all(map(_whole, blocks := tuple(blocks))):
        raise ValueError(f"blocks must be a list of block numbers, such as [3, 6, 9], got {blocks!r}")
    return tuple(int(block) for block in blocks)


def _whole(number: Any) -> bool:
    return isinstance(number, Integral) and not isinstance(number, bool)


def check_options(method: Any, preset: str | None, options: dict[str, Any]) -> Method:
    """The method of a name and its options, or a method object as it is.

    Raises:
        ValueError: neither, or options that this method does not have.
    """
    if not isinstance(method, str | Method):
        raise ValueError(f"method must be a name or a ttf.methods.Method, got {method!r}")
    if preset is not None:
        options = {"preset": preset, **options}
    return methods.build(method, **options)


@dataclass(frozen=True)
class Arguments:
    """The arguments of ``ttf.apply`` that are the same for all methods; None: not given."""

    ratio: Any
    blocks: Any
    rounding: Any
    schedule: Any
    recover: Any
    recover_at: Any
    windows: Any = None
    shift: Any = None
    reduce_after: Any = None
    budget: Any = None

    def plan(self, model: nn.Module, host: Host, method: Method) -> Plan:
        """The plan for a model.

        Raises:
            ValueError: see ``ttf.apply``.
        """
        self._check_budget()
        host, depth = self._placed(host), host.first + len(blocks_of(model, host))
        recovery = _recovery(self.recover)
        told = self._automatic(recovery is None and host.reads_class_token(model), host.early, depth)
        schedule = told._schedule(host, depth)
        schedule.check(depth)
        check_whole(schedule, host.first, depth)
        behind_last = isinstance(schedule, Late) or (isinstance(schedule, Searched) and schedule.drops_behind_last)
        if behind_last and (recovery is not None or not host.reads_class_token(model)):
            name = "late" if isinstance(schedule, Late) else "searched"
            raise ValueError(
                f"the {name} schedule is for heads that read the class token alone: use ratio and blocks instead"
            )
        size = host.input_size(model)
        plan = Plan(
            method,
            schedule,
            host,
            host.prefix(model),
            host.class_token(model),
            recovery or host.recovery,
            None if size is None else host.grid(model, size),
            depth,
        )
        if self.budget is None:
            return plan
        found = budgeted(model, plan, self.budget, lambda ratio: replace(told, ratio=ratio)._schedule(host, depth))
        return replace(plan, schedule=found)

    def _automatic(self, class_token_alone: bool, early: bool, depth: int) -> Arguments:
        """These arguments with what a budget alone decides.

        Late blocks where the head reads the class token alone, early ones where all tokens come back once, behind them.
        """
        named = isinstance(self.schedule, str) and self.schedule == AUTO
        unread = [name for name in ("blocks", "rounding") if getattr(self, name) is not None]
        if named and self.budget is None:
            raise ValueError('schedule="auto" follows from a budget: give one, budget=0.65')
        if named and unread:
            raise ValueError(f'schedule="auto" reads the budget alone: leave {", ".join(unread)} out')
        if not named and (self.schedule is not None or self.budget is None or unread):
            return self
        if class_token_alone:
            return replace(self, schedule="late", blocks=late_blocks(self.budget, depth))
        return replace(self, schedule=None, blocks=early_blocks(self.budget, depth) if early else None)

    def _placed(self, host: Host) -> Host:
        """The host with what was chosen, for hosts that have a choice."""
        if self.recover_at is not None and not host.places:
            raise ValueError("this model has no choice of where tokens come back: leave recover_at out")
        given = {name: value for name in HOST_OPTIONS if (value := getattr(self, name)) is not None}
        unread = [name for name in given if name not in host.choices]
        if unread:
            raise ValueError(f"this model has no windows: leave {', '.join(unread)} out")
        places = {} if self.recover_at is None else {"recover_at": self.recover_at}
        return host.chosen(**places, **given) if places or given else host

    def _schedule(self, host: Host, depth: int) -> Schedule:
        given, blocks = self.schedule, _blocks(self.blocks)
        if given is not None and not isinstance(given, str | Path):
            return self._own_schedule(given)
        if is_file(given):
            return self._own_schedule(load(given))
        if given not in (None, "late"):
            raise ValueError(f'schedule must be "auto", "late", the .yaml file of a search or a Schedule: {given!r}')
        ratio = RATIO if self.ratio is None else self.ratio
        if not isinstance(ratio, Real) or isinstance(ratio, bool):
            raise ValueError(f"ratio is the share of tokens to keep and must be a number in (0, 1], got {ratio!r}")
        if given == "late":
            if self.rounding is not None:
                raise ValueError('schedule="late" reads ratio and blocks, not rounding: leave that out')
            return Late(float(ratio), depth, blocks)
        if blocks == ():
            raise ValueError("blocks is an empty list, which reduces nowhere: name at least one, or leave it out")
        return KeepRatio(
            float(ratio), host.default_blocks(depth) if blocks is None else blocks, self.rounding or "floor"
        )

    def _check_budget(self) -> None:
        if self.budget is None:
            return
        check_budget(self.budget)
        if self.ratio is not None:
            raise ValueError("ratio and budget both say how far to reduce: give one or the other")

    def _own_schedule(self, given: Any) -> Schedule:
        if not callable(getattr(given, "kept", None)):
            raise ValueError(f'schedule must be "auto", "late" or a Schedule, got {given!r}')
        also = {"ratio": self.ratio, "budget": self.budget, "blocks": self.blocks, "rounding": self.rounding}
        unread = [name for name, value in also.items() if value is not None]
        if unread:
            raise ValueError(
                f"{', '.join(unread)} would not be read beside schedule={type(given).__name__}(...), which says where "
                "and how far to reduce: give one or the other"
            )
        return given
