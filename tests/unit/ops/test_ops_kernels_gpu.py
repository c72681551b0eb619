"""The path on a GPU, as far as it goes without one: attention with its log-sum-exp, and that all kernels compile."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from ttf.ops.kernels import HAS_TRITON, available
from ttf.ops.kernels.fused import attention_with_lse

NAMES = ["column_sums_kernel", "novelty_kernel", "assignment_lse_kernel", "transform_down_kernel"]
SHARED_MEMORY = 99 * 1024  # bytes of a program that every GPU since sm_80 has


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("biased", [True, False])
def test_fused_attention_knows_its_log_sum_exp(dtype: torch.dtype, biased: bool) -> None:
    q, k, v = torch.randn(2, 21, 3, 2, 16).to(dtype).permute(2, 0, 3, 1, 4)
    bias = torch.rand(2, 1, 1, 21).log().to(dtype)
    bias[1, ..., 9:] = -torch.inf
    logits = (q.double() / 4) @ k.double().transpose(-2, -1) + (bias.double() if biased else 0.0)
    out, lse = attention_with_lse(q, k, v, bias if biased else None, 0.25)
    close, rounded = (1e-5, 1e-5) if dtype == torch.float32 else (2e-4, 4 * torch.finfo(dtype).eps)
    torch.testing.assert_close(lse.double(), logits.logsumexp(-1), rtol=0, atol=close)
    torch.testing.assert_close(out.double(), logits.softmax(-1) @ v.double(), rtol=0, atol=rounded)
    assert out.dtype == dtype and lse.dtype == torch.float32


class _Biases(TorchDispatchMode):
    """Notes what the fused kernel is given as its bias."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._scaled_dot_product_efficient_attention.default:
            self.seen = args[3]
        return func(*args, **(kwargs or {}))


def test_fused_attention_on_a_gpu_gets_aligned_rows() -> None:
    """Shapes alone: the kernel wants the bias expanded, at multiples of 16 bytes, and pads its log-sum-exp to 224."""
    with FakeTensorMode(), _Biases() as biases:
        q, k, v = (torch.empty(3, 2, 197, 64, device="cuda", dtype=torch.float16) for _ in range(3))
        bias = torch.empty(3, 1, 1, 197, device="cuda", dtype=torch.float16)
        out, lse = attention_with_lse(q, k, v, bias, 0.125)
    assert out.shape == q.shape and lse.shape == (3, 2, 197) and lse.dtype == torch.float32
    assert biases.seen.shape == (3, 2, 197, 197) and biases.seen.dtype == torch.float16
    assert biases.seen.stride(-1) == 1 and all(stride % 8 == 0 for stride in biases.seen.stride()[:3])


def test_kernels_are_for_gpus_and_the_interpreter() -> None:
    assert "TRITON_INTERPRET" not in os.environ and not available(torch.device("cpu"))
    assert available(torch.device("cuda")) is HAS_TRITON


class _Hopper:
    """A driver of triton's that names a target and has no device."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[Any]]:
    """What the launches of a test compile to, for sm_90 and with the arguments of the launch; nothing is run."""
    pytest.importorskip("triton", reason="needs triton")
    from triton.backends.nvidia.compiler import get_ptxas
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    try:
        get_ptxas(90)
    except RuntimeError as error:
        pytest.skip(f"needs ptxas: {error}")
    run, launched, binaries = JITFunction.run, list[Any](), list[Any]()

    def compile_only(self: Any, *args: Any, warmup: bool, **options: Any) -> None:
        launched.append(self)
        binaries.append(run(self, *args, warmup=True, **options))

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(JITFunction, "run", compile_only)
    monkeypatch.setattr(driver, "_active", _Hopper())
    yield binaries
    for kernel in launched:
        kernel.device_caches.clear()  # a GPU of this machine is not to find them


def _launch_all(dtype: torch.dtype, dim: int, gate: str, biased: bool, precision: Any) -> None:
    """Every kernel once, in the shapes and strides of a DeiT-S."""
    from ttf.ops.kernels import sums, transform

    q, k, _ = torch.zeros(2, 197, 3, 6, dim, dtype=dtype).permute(2, 0, 3, 1, 4)
    bias, lse = torch.zeros(2, 1, 1, 197, dtype=dtype), torch.zeros(2, 6, 224)[..., :197]
    sums.column_sums(q, k, bias if biased else None, lse, 0.125, 1)
    units, index, ones = torch.zeros(2, 196, 384), torch.arange(137).expand(2, -1), torch.ones(2, 196)
    transform.novelty(units, ones, precision)
    layer, options = (units, units[:, :137], index), (0.5, 150.0, gate, precision)
    transform.assignment_lse(*layer, *options)
    x = torch.zeros(2, 197, 384, dtype=dtype)[:, 1:]
    transform.transform_down(*layer, ones, ones if biased else None, x, *options)


@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.parametrize(
    ("dtype", "dim", "gate", "biased", "precision"),
    [
        (torch.float32, 80, "zero", True, "ieee"),
        (torch.bfloat16, 72, "mask", False, "tf32x3"),
    ],
)
def test_kernels_compile_for_a_gpu(
    compiled: list[Any], dtype: torch.dtype, dim: int, gate: str, biased: bool, precision: str
) -> None:
    _launch_all(dtype, dim, gate, biased, precision)
    assert [binary.metadata.name for binary in compiled] == NAMES
    for binary in compiled:
        ptx = binary.asm["ptx"]
        assert binary.asm["cubin"] and ".target sm_90" in ptx
        assert binary.metadata.shared <= SHARED_MEMORY
        assert re.search(r"^\s*(@!?%\w+\s+)?(atom|red)\.", ptx, re.MULTILINE) is None  # sums keep their order
