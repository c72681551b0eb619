"""``ttf.apply`` says what is wrong with its arguments before it touches the model: types, conflicts, unread ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

import ttf
from ttf.methods import TokenTransform
from ttf.schedule import Counts, KeepRatio, Late, RemovePerBlock

BAD: list[tuple[dict[str, Any], str]] = [
    ({"ratio": "a"}, r"ratio .*number in \(0, 1\], got 'a'"),
    ({"ratio": True}, r"ratio .*number in \(0, 1\], got True"),
    ({"ratio": float("nan")}, r"ratio .*\(0, 1\]"),
    ({"blocks": 3}, r"blocks must be a list of block numbers, such as \[3, 6, 9\], got 3"),
    ({"blocks": [1.5]}, "blocks must be a list of block numbers"),
    ({"blocks": "369"}, "blocks must be a list of block numbers"),
    ({"blocks": [True]}, "blocks must be a list of block numbers"),
    ({"accumulate": "no"}, "accumulate must be true or false, got 'no'"),
    ({"kappa": "0.5"}, "kappa must be a number"),
    ({"tau": None}, "tau must be a number"),
    ({"method": 3}, "method must be a name"),
    ({"method": TokenTransform(accumulate="no")}, "accumulate must be true or false"),  # type: ignore[arg-type]
    ({"recover": 3}, "recover must be True, False"),
    ({"rounding": 3}, "rounding must be one of floor, round, ceil"),
    ({"preset": 3}, "preset must be one of default, paper"),
    ({"schedule": 3}, 'schedule must be "auto", "late" or a Schedule'),
    ({"recover_at": "masks"}, "no choice of where tokens come back"),
    ({"method": "hourglass", "cells": 3}, "cells must be a list"),
    ({"method": "dpc_knn", "neighbours": 2.5}, "neighbours must be a whole number"),
    # unread, or in conflict
    ({"method": "tome", "kappa": 0.3}, "tome has no option kappa: there are scaling"),
    ({"method": "tome", "preset": "paper"}, "preset is read by token_transform alone"),
    ({"schedule": "late", "rounding": "ceil"}, "reads ratio and blocks, not rounding"),
    ({"ratio": 0.5, "rounding": "foo", "schedule": KeepRatio(0.5, (3,))}, "ratio, rounding would not be read beside"),
    ({"blocks": [3], "schedule": Counts(((3, 5),))}, "blocks would not be read beside schedule=Counts"),
    ({"method": TokenTransform(), "preset": "paper"}, "a method object has its own"),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=str)
def test_one_clear_error_and_the_model_as_it_was(
    options: dict[str, Any], message: str, tiny: Callable[..., VisionTransformer], images: Callable[..., torch.Tensor]
) -> None:
    model, x = tiny(), images()
    before = ttf.apply(model, ratio=0.8)(x)
    with pytest.raises(ValueError, match=message):
        ttf.apply(model, **options)
    assert torch.equal(model(x), before)


@pytest.mark.parametrize(
    "options", [{"ratio": 1}, {"kappa": 0}, {"blocks": range(2, 5)}, {"blocks": torch.tensor([3, 6]).tolist()}], ids=str
)
def test_numbers_of_other_kinds_are_fine(options: dict[str, Any], tiny: Callable[..., VisionTransformer]) -> None:
    ttf.apply(tiny(), **options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: KeepRatio("a", (3,)), "ratio must be a number"),  # type: ignore[arg-type]
        (lambda: KeepRatio(0.5, 3), "blocks must be a list"),  # type: ignore[arg-type]
        (lambda: RemovePerBlock(2.5), "r must be a whole number or a list"),  # type: ignore[arg-type]
        (lambda: Late(0.5, "x"), "depth must be a whole number"),  # type: ignore[arg-type]
        (lambda: Counts(3), "counts must be a list"),  # type: ignore[arg-type]
    ],
)
def test_schedules_check_their_types(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_registers_are_no_class_token(tiny: Callable[..., VisionTransformer]) -> None:
    model = tiny(class_token=False, reg_tokens=4, global_pool="avg")
    for options in ({"method": "evit"}, {"method": "ats"}, {"score_rows": "class"}, {"method": "prumerge"}):
        with pytest.raises(ValueError, match="class token, and this model has none"):
            ttf.apply(model, **options)
    assert [layer.prefix for layer in ttf.trace(ttf.apply(model), torch.zeros(1, 3, 32, 32))] == [4, 4, 4]


def test_wrapped_models_say_so(tiny: Callable[..., VisionTransformer], images: Callable[..., torch.Tensor]) -> None:
    wrapped = torch.compile(ttf.apply(tiny()), backend="eager")
    for call in (ttf.remove, ttf.plan, ttf.twin, lambda model: ttf.trace(model, images())):
        with pytest.raises(ValueError, match=r"wrapped by torch\.compile: apply ttf first"):
            call(wrapped)
