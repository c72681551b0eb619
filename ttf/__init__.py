"""Token Transforming: training-free, many-to-many token compression for Vision Transformers (arXiv 2506.05709).

model = ttf.apply(timm.create_model("vit_small_patch16_224", pretrained=True), ratio=0.7)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ttf import api as api
    from ttf import hosts as hosts
    from ttf import measure as measure
    from ttf import methods as methods
    from ttf import ops as ops
    from ttf import tasks as tasks
    from ttf.api import LayerTrace, applied, apply, plan, remove, trace, twin
    from ttf.searching.search import search

__all__ = ["LayerTrace", "applied", "apply", "measure", "plan", "remove", "search", "trace", "twin"]
ELSEWHERE = {"search": "ttf.searching.search"}
ROOMS = ("api", "hosts", "measure", "methods", "ops", "tasks")


def __getattr__(name: str) -> Any:
    """The API, imported at its first use: scripts find mistakes in a command before torch is there."""
    if name in ROOMS:
        return import_module(f"ttf.{name}")
    if name in __all__:
        return getattr(import_module(ELSEWHERE.get(name, "ttf.api")), name)
    raise AttributeError(f"module 'ttf' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, *ROOMS])
