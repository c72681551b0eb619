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
LARGEST, SMALLEST, WHOLE = 3.4e38, 1.2e-38, 2**63  # of float32, and of whole numbers
PLAIN = (bool, int, float, str, type(None))
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


def check_declared(declared: Mapping[str, Any], values: Mapping[str, Any], place: str = "") -> None:
    """Raise ``ValueError`` for values of another type than is declared where that is made of plain ones.

    Args:
        declared: types by name.
        values: by name; mappings pass.
        place: what stands before the names, for messages.
    """
    for name, value in values.items():
        wanted = declared.get(name, Any)
        if isinstance(value, Mapping) or not _is_plain(wanted):
            continue
        if not _fits(value, wanted):
            raise ValueError(f"{place}{name} must be {_words(wanted)}, got {value!r}")
        check_sizes({f"{place}{name}": value})


def _is_plain(wanted: Any) -> bool:
    """Whether a type is made of numbers, words and lists of them alone."""
    origin = get_origin(wanted)
    if origin is Literal or wanted in PLAIN:
        return True
    union = origin in (Union, types.UnionType)
    return (union or origin in (tuple, list, Sequence)) and all(
        one is Ellipsis or _is_plain(one) for one in get_args(wanted)
    )


def check_sizes(values: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` for a number, or one of a list, that becomes 0 or infinite where models compute with it."""
    for name, value in values.items():
        for one in value if isinstance(value, list | tuple) else (value,):
            if isinstance(one, Real) and not _computable(one):
                how = "large" if abs(float(one)) > 1 else "close to 0"
                raise ValueError(f"{name} is too {how} to compute with, got {one}")


def _computable(one: Any) -> bool:
    if isinstance(one, Integral):
        return -WHOLE < int(one) < WHOLE
    return one == 0 or not math.isfinite(one) or SMALLEST < abs(one) < LARGEST


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


def part_of_name() -> Any:
    """A field for a part of a file's name, which may be empty and is no path."""
    return field(default="", metadata={"empty": True, "part": True})


def _check_number(name: str, value: Any, said: Mapping[str, Any]) -> None:
    for one in value if isinstance(value, Sequence) else [value]:
        if isinstance(one, Real) and not (said["low"] <= one <= said["high"] and one > said["above"]):
            raise ValueError(f"{name} is {said['meaning']}, got {one}")


def _check_list(name: str, value: Sequence[Any]) -> None:
    if not value:
        raise ValueError(f"{name} is an empty list: name at least one, or leave it out")
    twice = [one for number, one in enumerate(value) if one in value[:number]]
    if twice:
        raise ValueError(f"{name} names {twice[0]} twice: name it once")


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
            if "part" in one.metadata and ("/" in value or "\0" in value):
                raise ValueError(f"{one.name} is a part of a file's name, without slashes, got {value!r}")
            if (
                isinstance(value, Sequence)
                and not isinstance(value, str)
                and one.metadata.keys() & {"listed", "meaning"}
            ):
                _check_list(one.name, value)
        check_sizes(values)
