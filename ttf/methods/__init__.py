"""Reduction methods by name. A method is one file with one dataclass; see CONTRIBUTING.md for how to add one."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any, cast

from ttf.methods.base import LayerView, Method
from ttf.methods.evit import EViT
from ttf.methods.token_transform import PRESETS, TokenTransform

METHODS: dict[str, type] = {"token_transform": TokenTransform, "evit": EViT}

__all__ = ["METHODS", "PRESETS", "LayerView", "Method", "build"]


def _preset(name: str) -> dict[str, object]:
    if name not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}")
    return PRESETS[name]


def build(method: str | Method, preset: str = "default", **options: Any) -> Method:
    """A method from its name and its options.

    Args:
        method: a name in ``METHODS``, or a method object (then there are no options).
        preset: "default" or "paper"; single options take precedence over it.
        **options: fields of the method's dataclass.

    Raises:
        ValueError: unknown method, preset or option, or a value out of its range.
    """
    if not isinstance(method, str):
        if options or preset != "default":
            raise ValueError("options go with a method's name: a method object has its own")
        return method
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}: there are {', '.join(METHODS)}")
    kind = METHODS[method]
    assert is_dataclass(kind)
    valid = [field.name for field in fields(kind)]
    unknown = sorted(set(options) - set(valid))
    if unknown:
        raise ValueError(f"{method} has no option {', '.join(unknown)}: there are {', '.join(valid)}")
    start = _preset(preset) if kind is TokenTransform else {}
    return cast(Method, kind(**{**start, **options}))
