"""Where a number comes from: versions, code, device."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch.backends import cuda

from ttf.methods.base import Method
from ttf.ops import runner

PACKAGES = ("torch", "torchvision", "timm", "numpy", "ttf")
CODE = ("ttf", "configs", "scripts", "pyproject.toml")  # what numbers depend on; rows themselves do not make it dirty
RUNNERS = {"compiled": "compiled operators", "triton": "Triton operators", "plain": "plain operators"}
ROOT = Path(__file__).resolve().parents[2]


def _git(*arguments: str) -> str | None:
    if not (ROOT / ".git").exists():  # installed, perhaps inside of somebody else's repository
        return None
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def device_name(device: torch.device) -> str:
    """The device in words, with the number of threads where it is the CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {torch.get_num_threads()} threads"


def attention_backend(device: torch.device) -> str:
    """Which attention kernels torch may use on the device."""
    if device.type != "cuda":
        return "scaled_dot_product_attention (cpu)"
    allowed = {
        "flash": cuda.flash_sdp_enabled(),
        "efficient": cuda.mem_efficient_sdp_enabled(),
        "math": cuda.math_sdp_enabled(),
    }
    return "scaled_dot_product_attention (" + ", ".join(name for name, on in allowed.items() if on) + ")"


def operators_used(device: torch.device, dtype: torch.dtype = torch.float32, method: Method | None = None) -> str:
    """What runs the operators of compressed layers without a gradient; with one, and in exported code, plain ones do.

    Args:
        device: where.
        dtype: of the tokens.
        method: that reduces: where its transform has no operator, the answer says that it is plain.
    """
    who = runner(device, dtype)
    mixed = who != "plain" and method is not None and method.runs_plain
    return f"{RUNNERS[who]}, plain transform" if mixed else RUNNERS[who]


def provenance(
    device: torch.device, dtype: torch.dtype = torch.float32, method: Method | None = None
) -> dict[str, Any]:
    """Versions, git commit and dirty flag, device, attention backend and operators, for a row of results."""
    status = _git("status", "--porcelain", "--", *CODE)
    return {
        "versions": versions(),
        "git": {"sha": _git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)},
        "device": device_name(device),
        "attention": attention_backend(device),
        "operators": operators_used(device, dtype, method),
    }
