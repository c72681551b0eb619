"""Types of settings, as their dataclasses declare them: wrong ones are one clear ``ValueError``."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
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
