"""The smallest method and the host in CONTRIBUTING.md work as printed, and so does the line in the list of tests."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import ttf
from tests.methods_under_test import CASES, MethodCase
from ttf import hosts
from ttf.methods import METHODS
from ttf.methods.base import LayerView, Method

TEXT = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()
CODE = re.findall(r"```python\n(.*?)```", TEXT, re.S)


@pytest.fixture(scope="module")
def case() -> MethodCase:
    """The line for ``CASES``, with the method of the example."""
    code, line = CODE[:2]
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


@pytest.fixture
def dinov2(monkeypatch: pytest.MonkeyPatch, stir: Any) -> Any:
    """A small DINOv2."""
    transformers: Any = pytest.importorskip("transformers", reason="needs transformers: pip install 'ttf[hf]'")
    if tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 20):
        pytest.skip("the example is for transformers 5.20 and later")
    monkeypatch.setattr(hosts, "SUPPORTED", dict(hosts.SUPPORTED))
    sizes = {"hidden_size": 48, "num_hidden_layers": 6, "num_attention_heads": 3, "image_size": 32, "patch_size": 4}
    return stir(transformers.Dinov2Model(transformers.Dinov2Config(**sizes)))


def test_the_host_is_short() -> None:
    assert CODE[2].startswith("# my_hosts.py") and len(CODE[2].splitlines()) < 60


@pytest.mark.parametrize("options", [{}, {"recover": True}, {"method": "tome"}, {"method": "evit"}, {"method": "ats"}])
def test_the_host_gives_every_bit_of_the_built_in_one(options: dict[str, Any], dinov2: Any, images: Any) -> None:
    x = images()
    before = dinov2(x).last_hidden_state
    built_in = ttf.apply(dinov2, ratio=0.5, **options)(x, output_hidden_states=True)
    traced = ttf.trace(dinov2, x)
    ttf.remove(dinov2)
    exec(CODE[2], {"__name__": __name__})
    own = ttf.apply(dinov2, ratio=0.5, **options)(x, output_hidden_states=True)
    assert type(ttf.plan(dinov2).host).__name__ == "MyDinov2"
    assert torch.equal(own.last_hidden_state, built_in.last_hidden_state)
    assert torch.equal(own.pooler_output, built_in.pooler_output)
    assert all(torch.equal(a, b) for a, b in zip(own.hidden_states, built_in.hidden_states, strict=True))
    assert [layer.block for layer in ttf.trace(dinov2, x)] == [layer.block for layer in traced] == [1, 3, 4]
    assert all(torch.equal(a.W, b.W) for a, b in zip(ttf.trace(dinov2, x), traced, strict=True))
    assert torch.equal(ttf.apply(dinov2, ratio=1.0)(x).last_hidden_state, before)
    assert torch.equal(ttf.remove(dinov2)(x).last_hidden_state, before)


def test_subclasses_of_a_registered_class_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "SUPPORTED", dict(hosts.SUPPORTED))

    class Own(torch.nn.Module):
        pass

    class Derived(Own):
        pass

    with pytest.raises(ValueError, match="Derived is not a supported host"):
        hosts.find(Derived())

    def host(model: torch.nn.Module) -> Any:
        raise ValueError(f"asked for {type(model).__name__}")

    hosts.register(Own, host)
    with pytest.raises(ValueError, match="asked for Derived"):
        ttf.apply(Derived())
    assert any(name.endswith("Own") for name in hosts.names())
