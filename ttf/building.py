"""Objects from configs, with their own errors; what a config gives them is of the types that they declare."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from ttf.checks import check_declared

OURS = "ttf."  # begins names of targets whose declared types are meant so


def _declared(target: Callable[..., Any]) -> dict[str, Any]:
    """Types of the arguments of a class or a function; none where they cannot be told."""
    try:
        return get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except (NameError, TypeError):  # names that are imported for type checkers alone
        return {}


def _check(values: Any, place: str) -> None:
    """Raise ``ValueError`` for a value of another type than our target, or one below it, declares."""
    if not isinstance(values, Mapping):
        return
    target = str(values.get("_target_", ""))
    if target.startswith(OURS):
        check_declared(_declared(get_object(target)), values, place)
    for name, value in values.items():
        _check(value, f"{place}{name}.")


def build(node: Any, **kwargs: Any) -> Any:
    """What ``node._target_`` makes. A ``ValueError`` or ``OSError`` of the target comes through: Hydra would wrap it.

    Raises:
        ValueError: of the target, or it does not take what the config gives it.
    """
    if not isinstance(node, Mapping | DictConfig):
        raise ValueError(f"a part of the config with a _target_ is missing, got {node!r}: leave that setting out")
    place = node._get_full_key(None) if isinstance(node, DictConfig) else ""
    values: Any = OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else node
    _check(values, f"{place}." if place else "")
    try:
        return instantiate(node, **kwargs)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, ValueError | OSError):
            raise cause from None
        if isinstance(cause, TypeError) and "argument" in str(cause):
            raise ValueError(f"{node['_target_']} cannot be made from this config: {cause}") from error
        raise
