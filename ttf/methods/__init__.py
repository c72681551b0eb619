"""Reduction methods by name. A method is one file with one dataclass; see CONTRIBUTING.md for how to add one."""

from __future__ import annotations

from dataclasses import MISSING, fields, is_dataclass
from typing import Any, cast

from ttf.checks import check_sizes, check_types
from ttf.methods.algm import ALGM
from ttf.methods.atc import ATC
from ttf.methods.ats import ATS
from ttf.methods.base import LayerView, Method
from ttf.methods.diffrate import DiffRate
from ttf.methods.divprune import DivPrune
from ttf.methods.dpc_knn import DpcKnn
from ttf.methods.evit import EViT
from ttf.methods.hourglass import Hourglass
from ttf.methods.k_medoids import KMedoids
from ttf.methods.mctf import MCTF
from ttf.methods.patch_merger import PatchMerger
from ttf.methods.pitome import PiToMe
from ttf.methods.ppt import PPT
from ttf.methods.prumerge import PruMerge
from ttf.methods.prune_and_merge import PruneAndMerge
from ttf.methods.random_pruning import RandomPruning
from ttf.methods.sinkhorn import Sinkhorn
from ttf.methods.sit import SiT
from ttf.methods.tofu import ToFu
from ttf.methods.token_transform import PRESETS, TokenTransform
from ttf.methods.tome import ToMe
from ttf.methods.tome_dense import ToMeDense
from ttf.methods.top_k import TopK
from ttf.methods.tps import TPS
from ttf.methods.uniform import UniformPool, UniformStride
from ttf.methods.visionzip import VisionZip

METHODS: dict[str, type[Method]] = {
    "token_transform": TokenTransform,
    "tome": ToMe,
    "tome_dense": ToMeDense,
    "evit": EViT,
    "tps": TPS,
    "ats": ATS,
    "ppt": PPT,
    "diffrate": DiffRate,
    "mctf": MCTF,
    "pitome": PiToMe,
    "tofu": ToFu,
    "atc": ATC,
    "algm": ALGM,
    "hourglass": Hourglass,
    "prumerge": PruMerge,
    "visionzip": VisionZip,
    "divprune": DivPrune,
    "prune_and_merge": PruneAndMerge,
    "dpc_knn": DpcKnn,
    "k_medoids": KMedoids,
    "uniform_pool": UniformPool,
    "uniform_stride": UniformStride,
    "top_k": TopK,
    "random_pruning": RandomPruning,
    # learned: their parameters have to be given
    "sinkhorn": Sinkhorn,
    "patch_merger": PatchMerger,
    "sit": SiT,
}

__all__ = ["METHODS", "PRESETS", "LayerView", "Method", "TokenTransform", "build"]


def _preset(name: str) -> dict[str, object]:
    if not isinstance(name, str) or name not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}")
    return PRESETS[name]


def build(method: str | Method, preset: str | None = None, **options: Any) -> Method:
    """A method from its name and its options.

    Args:
        method: a name in ``METHODS``, or a method object (then there are no options).
        preset: of token_transform alone, "default" or "paper"; single options take precedence over it.
        **options: fields of the method's dataclass.

    Raises:
        ValueError: unknown method, preset or option, or a value of a wrong type or out of its range.
    """
    if not isinstance(method, str):
        if options or preset is not None:
            raise ValueError("options go with a method's name: a method object has its own")
        check_types(type(method), vars(method))
        check_sizes(vars(method))
        return method
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}: there are {', '.join(METHODS)}")
    kind = METHODS[method]
    assert is_dataclass(kind)
    if preset is not None and kind is not TokenTransform:
        raise ValueError(f"preset is read by token_transform alone, not by {method}: leave it out")
    valid = [field.name for field in fields(kind)]
    unknown = sorted(set(options) - set(valid))
    if unknown:
        raise ValueError(f"{method} has no option {', '.join(unknown)}: there are {', '.join(valid) or 'none'}")
    check_types(kind, options)
    check_sizes(options)
    required = [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]
    missing = sorted(set(required) - set(options))
    if missing:
        raise ValueError(f"{method} needs {', '.join(missing)}: trained parameters, see its docstring")
    start = _preset(preset) if preset is not None else {}
    made = cast(Method, kind(**{**start, **options}))
    idle = [name for name in made.unread if name in options]
    if idle:
        raise ValueError(f"{', '.join(idle)} would have no effect beside the other options of {method}: leave it out")
    return made
