"""Any option of any method with any value: refused in one line, or the model answers with finite numbers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.vision_transformer import VisionTransformer

import ttf
from ttf.methods import METHODS

OPTIONS = [
    (name, field.name)
    for name, kind in METHODS.items()
    for field in dataclasses.fields(kind)
    if field.default is not dataclasses.MISSING
]
# a number of iterations has no limit but patience
VALUES = [
    *(0, -1, 1, 7, 0.5, 1.5, 1e-300, 1e-40, 1e30, 1e38, 1e300, math.inf, -math.inf, math.nan),
    *(10**30, -(10**30), True, None, "x", "", b"x", [1], (1, 2), {}, 1j, object()),
]
ARGUMENTS = [
    "ratio",
    "budget",
    "blocks",
    "rounding",
    "schedule",
    "recover",
    "recover_at",
    "windows",
    "method",
    "preset",
]


def _answers(model: VisionTransformer, x: torch.Tensor, **options: object) -> bool:
    """Whether finite numbers come of it; False where it is refused in one line."""
    found, said = None, "nothing"
    try:
        with torch.no_grad(), ttf.applied(model, **options):
            found = model(x)
    except ValueError as error:
        said = str(error)
    assert said and "\n" not in said, options
    assert found is None or found.isfinite().all(), options
    return found is not None


def test_options_of_methods(tiny: Callable[..., VisionTransformer], images: Callable[..., torch.Tensor]) -> None:
    model, x, done = tiny(depth=3), images(1), [0, 0]

    @settings(max_examples=120)
    @given(st.sampled_from(OPTIONS), st.sampled_from(VALUES))
    def holds(option: tuple[str, str], value: object) -> None:
        method, name = option
        done[_answers(model, x, method=method, blocks=[1, 2], **{name: value})] += 1

    holds()
    assert min(done) > 2


def test_arguments_of_apply(tiny: Callable[..., VisionTransformer], images: Callable[..., torch.Tensor]) -> None:
    model, x = tiny(depth=3), images(1)
    for name in ARGUMENTS:
        for value in VALUES:
            _answers(model, x, **{name: value})
