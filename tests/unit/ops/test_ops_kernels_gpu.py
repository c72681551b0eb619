"""The path on a GPU, as far as it goes without one: which fused attention it takes, and that all kernels compile."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend
from torch.utils._python_dispatch import TorchDispatchMode

from ttf.ops.kernels import HAS_TRITON, available, dispatch, fused
from ttf.ops.plain import Reading

NAMES = {
    "attention_kernel",
    "whole_kernel",
    "column_sums_kernel",
    "gram_kernel",
    "novelty_kernel",
    "select_kernel",
    "chosen_kernel",
    "places_kernel",
    "assign_kernel",
    "down_kernel",
}

SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024}  # bytes that one program may have, by compute capability


class _Called(TorchDispatchMode):
    """Notes which fused kernel runs."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.name = str(func._overloadpacket)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("backend", fused.KNOWN)
def test_fused_attention_with_its_log_sum_exp(monkeypatch: pytest.MonkeyPatch, backend: int) -> None:
    """Shapes alone: the one that torch would run; some pad the rows of the log-sum-exp, some add a dimension."""
    monkeypatch.setattr(torch, "_fused_sdp_choice", lambda q, k, v, scale: backend)
    with FakeTensorMode():
        q, k, v = torch.empty(3, 197, 3, 2, 64, device="cuda", dtype=torch.float16).permute(2, 0, 3, 1, 4)
        attend = fused.chosen(q, k, v, 0.125)
        assert attend is fused.KNOWN[backend]
        with _Called() as called:
            out, lse = fused.attention_with_lse(q, k, v, 0.125, attend)
    assert out.shape == q.shape and out.transpose(1, 2).is_contiguous()
    assert lse.shape == (3, 2, 197) and lse.dtype == torch.float32
    assert called.name


def test_fused_attention_is_not_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "_fused_sdp_choice", lambda q, k, v, scale: SDPBackend.MATH.value)
    with FakeTensorMode():
        q = torch.empty(3, 2, 197, 64, device="cuda", dtype=torch.float16)
        assert fused.chosen(q, q, q, 0.125) is None
        assert fused.chosen(q[..., :12], q[..., :12], q[..., :12], 0.125) is None
        assert fused.chosen(q.to("cpu"), q, q, 0.125) is None


def test_kernels_are_for_gpus_and_the_interpreter() -> None:
    assert "TRITON_INTERPRET" not in os.environ and not available(torch.device("cpu"))
    assert available(torch.device("cuda")) is HAS_TRITON


class _Card:
    """A driver of triton's that names a target and has no device."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, 32)


@pytest.fixture(params=[90, 80])
def compiled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[Any]]:
    """What the launches of a test compile to, with the arguments of the launch; nothing is run."""
    pytest.importorskip("triton", reason="needs triton")
    from triton.backends.nvidia.compiler import get_ptxas
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    try:
        get_ptxas(request.param)
    except RuntimeError as error:
        pytest.skip(f"needs ptxas: {error}")
    run, launched, binaries = JITFunction.run, list[Any](), list[Any]()

    def compile_only(self: Any, *args: Any, warmup: bool, **options: Any) -> None:
        launched.append(self)
        binaries.append(run(self, *args, warmup=True, **options))

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(JITFunction, "run", compile_only)
    monkeypatch.setattr(driver, "_active", _Card(request.param))
    yield binaries
    for kernel in launched:
        kernel.device_caches.clear()  # a GPU of this machine is not to find them


def _launch_all(dtype: torch.dtype) -> None:
    """Every kernel, in the shapes and strides of a DeiT-S, and of longer sequences with wider heads."""
    for tokens, dim in ((197, 64), (577, 80)):
        q, k, v = torch.zeros(2, tokens, 3, 2, dim, dtype=dtype).permute(2, 0, 3, 1, 4)
        bias = torch.zeros(2, 1, 1, tokens, dtype=dtype)
        dispatch.attention(q, k, v, bias, 0.125)
        dispatch.summed_attention(q, k, v, bias, 0.125, 1)
    for tokens, gate, redundancy in ((197, "zero", True), (601, "mask", False)):
        x, scores = torch.zeros(2, tokens, 384, dtype=dtype), torch.zeros(2, tokens)
        reading = Reading(0.5, 150.0, gate, redundancy)  # type: ignore[arg-type]
        mass = scores[:, 1:] if redundancy else None
        dispatch.transform(x, x[:, 1:], scores, mass, 1 + 7 * (tokens - 1) // 10, 1, reading)


@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_kernels_compile_for_a_gpu(compiled: list[Any], request: pytest.FixtureRequest, dtype: torch.dtype) -> None:
    capability = request.node.callspec.params["compiled"]
    _launch_all(dtype)
    assert {binary.metadata.name for binary in compiled} == NAMES
    for binary in compiled:
        ptx = binary.asm["ptx"]
        assert binary.asm["cubin"] and f".target sm_{capability}" in ptx
        assert binary.metadata.shared <= SHARED_MEMORY[capability]
        assert re.search(r"^\s*(@!?%\w+\s+)?(atom|red)\.", ptx, re.MULTILINE) is None  # sums keep their order
