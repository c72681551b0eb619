"""What ``--model_args`` of lmms-eval says about the compression: "method=tome,r=8" to arguments of ``ttf.apply``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ttf.models.tower_tokens import check_order
from ttf.schedule import RemovePerBlock

FOR_APPLY = ("method", "ratio", "blocks", "recover", "budget", "preset", "rounding", "schedule")
OPTION = "method."  # before a field of the method


@dataclass(frozen=True)
class Compression:
    """How the tower is compressed.

    Attributes:
        options: arguments of ``ttf.apply``; None: not at all.
        order: of the tokens that the language model reads, see ``ttf.models.tower_tokens``.
    """

    options: dict[str, Any] | None
    order: str


def _is_ours(name: str) -> bool:
    return name in (*FOR_APPLY, "r", "order") or name.startswith(OPTION)


def split(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of the compression, and those of lmms-eval's own model."""
    ours = {name: value for name, value in given.items() if _is_ours(name)}
    return ours, {name: value for name, value in given.items() if name not in ours}


def _blocks(value: Any) -> tuple[int, ...]:
    """Blocks from a number or from "[3,6]", which lmms-eval leaves as text."""
    try:
        found = json.loads(value) if isinstance(value, str) else value
        numbers = found if isinstance(found, list | tuple) else [found]
        if any(type(number) is not int for number in numbers):
            raise ValueError
    except ValueError:
        raise ValueError(f"blocks must be a number or a list, blocks=[3,6], got {value!r}") from None
    return tuple(numbers)


def compression(given: Mapping[str, Any]) -> Compression:
    """The compression that arguments ask for.

    Args:
        given: those of ``split``: arguments of ``ttf.apply`` (fields of the method as "method.kappa"), r (ToMe's
            tokens removed per block), order ("raster" or "official"); method "none" compresses nothing.

    Raises:
        ValueError: arguments that exclude each other, or that ``method=none`` does not read.
    """
    options = {name.removeprefix(OPTION): value for name, value in given.items() if name not in ("r", "order")}
    order = given.get("order", "raster")
    check_order(order)
    if options.get("method") == "none":
        if len(given) > 1:
            raise ValueError(
                f"method=none reads no other argument: leave out {', '.join(sorted(set(given) - {'method'}))}"
            )
        return Compression(None, order)
    if "blocks" in options:
        options["blocks"] = _blocks(options["blocks"])
    if "r" in given:
        both = [name for name in ("ratio", "budget", "schedule", "rounding") if name in options]
        if both:
            raise ValueError(f"r says how many tokens go: leave out {', '.join(both)}")
        options["schedule"] = RemovePerBlock(given["r"], options.pop("blocks", None))
    return Compression(options, order)
