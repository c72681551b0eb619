"""Whether a card may run the kernels: it computes some cases of their contract, once a card, dtype and version.

What came of it is kept in the user's cache, so that later processes only read it. Imports torch alone.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path

import torch
from torch.utils._python_dispatch import _disable_current_modes

from ttf.ops.native.build import cache_folder

OLDEST = (8, 0)  # compute capability: from there on tensor cores take bfloat16
LOG = logging.getLogger("ttf")

_known: dict[tuple[int, torch.dtype], bool] = {}


def passed(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernels keep their contract on a card, in one dtype; the first call on a new card takes a minute.

    Args:
        device: a GPU of NVIDIA's, else the answer is no.
        dtype: of the tokens.
    """
    if device.type != "cuda" or torch.version.hip is not None:
        return False
    return _passed(-1 if device.index is None else device.index, dtype)


def _is_there() -> bool:
    return torch.cuda.is_available()


@torch.compiler.assume_constant_result
def _passed(index: int, dtype: torch.dtype) -> bool:
    """As a constant for compiled code: a card does not change."""
    if not _is_there():  # shapes alone
        return False
    index = torch.cuda.current_device() if index < 0 else index
    if (index, dtype) not in _known:
        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError("a CUDA graph is being captured: run the model once before, so that its card is known")
        _known[index, dtype] = _look(index, dtype)
    return _known[index, dtype]


def _look(index: int, dtype: torch.dtype) -> bool:
    """What the cache says, or the card itself."""
    if torch.cuda.get_device_capability(index) < OLDEST:
        return False
    try:
        file = _file(index, dtype)
    except ValueError:  # no cache
        return not _broken(index, dtype)
    try:
        return not json.loads(file.read_text())["broken"]
    except (OSError, ValueError, KeyError, TypeError):
        broken = _broken(index, dtype)
    _keep(file, {"device": torch.cuda.get_device_name(index), "dtype": str(dtype), "broken": broken})
    return not broken


def _broken(index: int, dtype: torch.dtype) -> list[str]:
    """What the card computes otherwise than the contract says, in words, with a warning; or why it cannot."""
    from ttf.ops.kernels import contract

    name = torch.cuda.get_device_name(index)
    LOG.info("the Triton kernels are compared with float64 on %s in %s, once; this takes a minute", name, dtype)
    device = torch.device("cuda", index)
    try:
        with _disable_current_modes(), torch.inference_mode(False), torch.no_grad():
            outcomes = list(contract.outcomes(device, contract.few(dtype)))
        broken = [f"{outcome.share:.2g} times the error of {outcome.what}" for outcome in outcomes if not outcome.kept]
    except Exception as error:  # compilers and drivers raise many
        broken = [f"{type(error).__name__}: {str(error).strip()}".splitlines()[0][:300]]
    if broken:
        warnings.warn(
            f"torch's own operators run on {name} in {dtype}, the Triton kernels break their contract: {broken[0]}",
            stacklevel=2,
        )
    return broken


def _file(index: int, dtype: torch.dtype) -> Path:
    """Where it is kept: by card, dtype, versions and the source of the kernels.

    Raises:
        ValueError: there is no cache.
    """
    folder = Path(__file__).parent
    parts = [file.read_text() for file in sorted(folder.glob("*.py"))]
    parts += [torch.cuda.get_device_name(index), str(torch.cuda.get_device_capability(index)), str(dtype)]
    parts += [torch.__version__, str(torch.version.cuda), version("triton")]
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    return cache_folder() / f"kernels-{digest}.json"


def _keep(file: Path, content: dict[str, object]) -> None:
    """Written whole or not at all; a cache that cannot be written is none."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, temporary = tempfile.mkstemp(dir=file.parent)
        with os.fdopen(handle, "w") as stream:
            json.dump(content, stream)
        Path(temporary).replace(file)
    except OSError as error:
        LOG.info("the outcome cannot be kept: %s", error)
