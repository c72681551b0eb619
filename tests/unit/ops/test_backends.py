"""Who runs the operators: one switch, and everyone who asks it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import ttf
from tests.scripts_under_test import fresh
from ttf.measure.provenance import operators_used
from ttf.ops import attention, backend, backends, library, native, runner

CPU, GPU = torch.device("cpu"), torch.device("cuda")
compiled = pytest.mark.skipif(not native.loaded(), reason="not compiled: python -m ttf.ops.native")


class Called(TorchDispatchMode):
    """The names of the operators that run."""

    def __enter__(self) -> Any:
        self.names: set[str] = set()
        return super().__enter__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(str(func._overloadpacket))
        return func(*args, **(kwargs or {}))


@compiled
def test_a_choice_holds_for_the_block_or_from_now_on() -> None:
    assert runner(CPU, torch.float32) == "compiled"
    with backend("plain"):
        assert runner(CPU, torch.float32) == "plain"
        with backend("auto"):
            assert runner(CPU, torch.float32) == "compiled"
        assert runner(CPU, torch.float32) == "plain"
    before = backend("plain")
    try:
        assert runner(CPU, torch.float32) == "plain"
    finally:
        before.__exit__()
    assert runner(CPU, torch.float32) == "compiled"


def test_an_error_ends_the_choice() -> None:
    with pytest.raises(KeyError), backend("plain"):
        raise KeyError
    assert backends._chosen == "auto"


@pytest.mark.parametrize("name", ["native", "", None])
def test_unknown_names_list_those_that_there_are(name: Any) -> None:
    with pytest.raises(ValueError, match="backend must be one of auto, plain, triton, got"):
        backend(name)
    assert backends._chosen == "auto"


def test_gpus_and_half_precision_run_plain_operators() -> None:
    for device, dtype in (
        (GPU, torch.float32),
        (CPU, torch.float16),
        (CPU, torch.float64),
        (torch.device("meta"), torch.float32),
    ):
        assert runner(device, dtype) == "plain"
        assert operators_used(device, dtype) == "plain operators"


def test_triton_is_for_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "available", lambda device: device.type == "cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with backend("triton"):
        assert operators_used(GPU, torch.bfloat16) == "Triton operators"
        assert runner(GPU, torch.float64) == "plain"
        assert runner(CPU, torch.float32) == ("compiled" if native.loaded() else "plain")


def test_heads_too_wide_for_the_kernels_are_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "runner", lambda *_: "triton")
    q, k, v = torch.randn(3, 1, 2, 5, 130)
    with pytest.warns(UserWarning, match="no kernel for heads of 130 channels: torch's own attention runs"):
        out, _ = torch.ops.ttf.summed_attention(q, k, v, None, 0.1, 0)
    torch.testing.assert_close(out, attention.fused_attention(q, k, v, None, 0.1))


def test_eager_inference_calls_one_operator_and_a_gradient_torchs_own() -> None:
    q, k, v = torch.randn(3, 1, 2, 9, 4).unbind(0)
    with torch.no_grad(), Called() as called:
        attention.summed_attention(q, k, v, None, 0.5)
    assert called.names == {"ttf.summed_attention"}
    with Called() as called:
        attention.summed_attention(q.requires_grad_(), k, v, None, 0.5)
    assert not any(name.startswith("ttf") for name in called.names)


SAYS = """
import pathlib, torch
touched = []
exists, read = pathlib.Path.exists, pathlib.Path.read_bytes
pathlib.Path.exists = lambda self, *a, **k: (touched.append(str(self)), exists(self, *a, **k))[1]
pathlib.Path.read_bytes = lambda self: (touched.append(str(self)), read(self))[1]
from ttf.ops import native, runner
print(native.loaded(), runner(torch.device("cpu"), torch.float32), any("operators-" in name for name in touched))
"""


@pytest.mark.parametrize("word", ["0", "false", "No", " OFF "])
def test_the_environment_keeps_the_library_untouched(word: str) -> None:
    run = fresh("-c", SAYS, TTF_NATIVE=word)
    assert run.stdout == "False plain False\n", run.stderr[-2000:]


@compiled
@pytest.mark.parametrize("word", ["1", "", "true"])
def test_other_words_leave_it_on(word: str) -> None:
    run = fresh("-c", SAYS, TTF_NATIVE=word)
    assert run.stdout == "True compiled True\n", run.stderr[-2000:]


def test_the_switch_is_public() -> None:
    assert ttf.ops.backend is backend
