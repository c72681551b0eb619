"""A process with triton's interpreter on, for ``test_ops_kernels.py``: triton asks for it when a kernel is defined."""

from __future__ import annotations

import importlib
import os
import pickle
from importlib.metadata import version

import numpy as np
import pytest
from packaging.version import Version


def interpret() -> None:
    """First of all in the new process, before anything imports triton."""
    os.environ["TRITON_INTERPRET"] = "1"
    np.seterr(all="ignore")  # the interpreter computes with numpy, and log(0) is meant


def skip_without_loops() -> None:
    """Skip the test where interpreter and numpy do not fit."""
    if Version(version("triton")) < Version("3.9") and Version(np.__version__) >= Version("2.4"):
        pytest.skip("triton 3.6's interpreter has no loops with numpy 2.4 (3.9's has): install numpy<2.4")


def call(module: str, name: str, arguments: bytes) -> bytes:
    """``module.name(*arguments)``; arguments and answer are pickled, which keeps the strides of tensors."""
    return pickle.dumps(getattr(importlib.import_module(module), name)(*pickle.loads(arguments)))
