"""Types of settings, as their dataclasses declare them: wrong ones are one clear ``ValueError``."""

from __future__ import annotations

import math
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from numbers import Integral, Real
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

FEWEST_ROUNDS = 5  # of a median
WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a word", type(None): "nothing"}


@cache
def _declared(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def check_types(kind: type, values: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` for a value whose type is not the one that the dataclass declares.

    Args:
        kind: a dataclass.
        values: of some of its fields.
    """
    for name, value in values.items():
        wanted = _declared(kind)[name]
        if not _fits(value, wanted):
            raise ValueError(f"{name} must be {_words(wanted)}, got {value!r}")


def _fits(value: Any, wanted: Any) -> bool:
    origin, inner = get_origin(wanted), get_args(wanted)
    if origin in (Union, types.UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is Literal:
        return value in inner
    if origin is tuple or (origin is not None and origin not in (dict, Mapping) and issubclass(origin, Sequence)):
        listed = isinstance(value, Sequence) and not isinstance(value, str)
        return listed and all(_fits(one, inner[0]) for one in value)
    if wanted in (int, float):
        return isinstance(value, Integral if wanted is int else Real) and not isinstance(value, bool)
    wanted = origin or wanted
    return not isinstance(wanted, type) or isinstance(value, wanted)


def _words(wanted: Any) -> str:
    origin, inner = get_origin(wanted), get_args(wanted)
    if origin in (Union, types.UnionType):
        return " or ".join(_words(one) for one in inner)
    if origin is Literal:
        return "one of " + ", ".join(map(str, inner))
    if origin is Mapping:
        return "a mapping"
    if origin is not None and inner and origin is not dict:
        return f"a list, each of it {_words(inner[0])}"
    return WORDS.get(wanted, getattr(wanted, "__name__", str(wanted)))


def number(default: Any, meaning: str, low: float = -math.inf, high: float = math.inf, above: float = -math.inf) -> Any:
    """A field for a number, or for a list of them: from ``low`` to ``high``, larger than ``above``; None passes."""
    return field(default=default, metadata={"meaning": meaning, "low": low, "high": high, "above": above})


def count(default: Any, meaning: str, least: int = 1) -> Any:
    """A field for a whole number, or for a list of them, of at least ``least``; None passes."""
    return number(default, f"{meaning}, at least {least}", low=least)


def listed(default: Any = None) -> Any:
    """A field for a list that must not be empty; None passes."""
    return field(default=default, metadata={"listed": True})


def text(default: Any = None) -> Any:
    """A field for a word that may be empty."""
    return field(default=default, metadata={"empty": True})


def _check_number(name: str, value: Any, said: Mapping[str, Any]) -> None:
    for one in value if isinstance(value, Sequence) else [value]:
        if isinstance(one, Real) and not (said["low"] <= one <= said["high"] and one > said["above"]):
            raise ValueError(f"{name} is {said['meaning']}, got {one}")


@dataclass(frozen=True)
class Command:
    """Base: a value of another type, out of its range, or empty is a ``ValueError``."""

    def __post_init__(self) -> None:
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        check_types(type(self), values)
        for one in fields(self):
            value = values[one.name]
            if "meaning" in one.metadata:
                _check_number(one.name, value, one.metadata)
            if value == "" and "empty" not in one.metadata:
                raise ValueError(f"{one.name} is empty: give a value, or leave it out")
            if isinstance(value, Sequence) and not value and ("listed" in one.metadata or "meaning" in one.metadata):
                raise ValueError(f"{one.name} is an empty list: name at least one, or leave it out")
