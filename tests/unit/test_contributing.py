"""The smallest method in CONTRIBUTING.md works as printed."""

from __future__ import annotations

import re
from pathlib import Path

import torch

import ttf

PREAMBLE = """
from dataclasses import dataclass
import torch
from ttf.methods.base import LayerView
from ttf.ops.attention import Wanted
from ttf.ops.reduction import AssignmentReduction
from ttf.ops.transform import select
"""


def test_the_example_method_runs(tiny, images):
    text = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()
    code = re.search(r"```python\n(.*?)```", text, re.S)
    space: dict = {"__name__": __name__}
    exec(PREAMBLE + code[1], space)
    model, x = tiny(), images()
    ttf.apply(model, method=space["RandomPruning"](seed=3), ratio=0.5)
    layers = ttf.trace(model, x)
    assert [layer.W.shape[1] for layer in layers] == [33, 17, 9]
    assert all(torch.equal(layer.W.sum(-1), torch.ones(2, layer.W.shape[1])) for layer in layers)
    assert model(x).isfinite().all()
