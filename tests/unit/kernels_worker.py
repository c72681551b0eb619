"""A process with triton's interpreter on, for ``test_ops_kernels.py``: triton asks for it when a kernel is defined."""

from __future__ import annotations

import importlib
import os
import pickle

import numpy as np


def interpret() -> None:
    """First of all in the new process, before anything imports triton."""
    os.environ["TRITON_INTERPRET"] = "1"
    np.seterr(all="ignore")  # the interpreter computes with numpy, and log(0) is meant


def call(module: str, name: str, arguments: bytes) -> bytes:
    """``module.name(*arguments)``; arguments and answer are pickled, which keeps the strides of tensors."""
    return pickle.dumps(getattr(importlib.import_module(module), name)(*pickle.loads(arguments)))
