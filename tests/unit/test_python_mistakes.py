"""What is no model, no image and no shape, given to the functions of ttf: one line that says what is expected."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

import ttf

NO_MODEL = "a model is a torch.nn.Module, got "
CALLS: dict[str, tuple[Callable[[VisionTransformer], object], str]] = {
    "apply": (lambda model: ttf.apply(None), NO_MODEL + "NoneType"),
    "a class": (lambda model: ttf.apply(type(model)), NO_MODEL + "type"),
    "a state dict": (lambda model: ttf.apply(model.state_dict()), NO_MODEL + "OrderedDict"),
    "applied": (lambda model: ttf.applied(None).__enter__(), NO_MODEL),
    "remove": (lambda model: ttf.remove("vit"), NO_MODEL + "str"),
    "twin": (lambda model: ttf.twin(None), NO_MODEL),
    "plan": (lambda model: ttf.plan([model]), NO_MODEL + "list"),
    "trace": (lambda model: ttf.trace(ttf.apply(model), None), "images are a tensor (B, 3, H, W), got NoneType"),
    "trace of one": (
        lambda model: ttf.trace(ttf.apply(model), torch.zeros(3, 32, 32)),
        "images are a tensor (B, 3, H, W), got torch.Size([3, 32, 32])",
    ),
    "gmacs of nothing": (lambda model: ttf.measure.gmacs(None, (3, 32, 32)), NO_MODEL),
    "gmacs of a side": (lambda model: ttf.measure.gmacs(model, 32), "shape must be (3, H, W) or (B, 3, H, W), got int"),
    "gmacs below 0": (lambda model: ttf.measure.gmacs(model, (3, -32, 32)), "shape must be (3, H, W) or (B, 3, "),
    "gmacs of a tensor": (lambda model: ttf.measure.gmacs(model, torch.zeros(1, 3, 32, 32)), "shape must be "),
    "gmacs of fractions": (lambda model: ttf.measure.gmacs(model, (3, 32.5, 32)), "shape must be (3, H, W) or "),
}


@pytest.mark.parametrize("name", CALLS)
def test_mistakes(name: str, tiny: Callable[..., VisionTransformer]) -> None:
    call, said = CALLS[name]
    with pytest.raises(ValueError) as caught:
        call(tiny(depth=2))
    assert str(caught.value).startswith(said) and "\n" not in str(caught.value)
