"""The smallest method in CONTRIBUTING.md works as printed, and so does its line in the list of tests."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import ttf
from tests.methods_under_test import CASES, MethodCase
from ttf.methods import METHODS
from ttf.methods.base import LayerView, Method

TEXT = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()


@pytest.fixture(scope="module")
def case() -> MethodCase:
    """The line for ``CASES``, with the method of the example."""
    code, line = re.findall(r"```python\n(.*?)```", TEXT, re.S)[:2]
    space: dict[str, Any] = {"__name__": __name__, "MethodCase": MethodCase}
    exec(code, space)
    return eval(line.strip().removesuffix(","), space)


def test_the_example_is_a_method_of_its_own(case: MethodCase):
    assert isinstance(case.method, Method)
    assert case.name not in METHODS and case.name not in {other.name for other in CASES}
    fields = re.search(r"```yaml\n(.*?)```", TEXT, re.S)
    assert fields and f"method: {case.name}" in fields[1]


def test_the_example_runs(case: MethodCase, tiny, images):
    model, x = ttf.apply(tiny(), method=case.method, ratio=0.5), images()
    layers = ttf.trace(model, x)
    assert (case.rows, case.exclusive, case.extra) == ("one", True, 0)
    assert [layer.W.shape[1] for layer in layers] == [33, 17, 9]
    assert all(torch.equal(layer.W.sum(-1), torch.ones(2, layer.W.shape[1])) for layer in layers)
    assert all(layer.W.sum(1).max() <= 1 for layer in layers)
    assert model(x).isfinite().all()


def test_the_example_keeps_the_largest(case: MethodCase):
    x = torch.arange(1.0, 8.0).view(1, 7, 1).expand(-1, -1, 3)
    reduction = case.method.reduce(LayerView(x, prefix=1), 3)
    assert reduction.kept.tolist() == [[0, 5, 6]]
    torch.testing.assert_close(reduction.down(x), reduction.matrix() @ x)
