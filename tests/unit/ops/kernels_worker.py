"""A process with triton's interpreter on, for ``test_ops_kernels.py``: triton asks for it when a kernel is defined."""

from __future__ import annotations

import importlib
import os
import pickle
from importlib.metadata import version
from typing import Any

import numpy as np
import pytest
import torch
from packaging.version import Version


def interpret() -> None:
    """First of all in the new process, before anything imports triton."""
    os.environ["TRITON_INTERPRET"] = "1"
    np.seterr(all="ignore")  # the interpreter computes with numpy, and log(0) is meant


def skip_without_loops() -> None:
    """Skip the test where interpreter and numpy do not fit."""
    if Version(version("triton")) < Version("3.9") and Version(np.__version__) >= Version("2.4"):
        pytest.skip("triton 3.6's interpreter has no loops with numpy 2.4 (3.9's has): install numpy<2.4")


class _Small:
    """The kernels for long sequences, whatever the length: smaller limits, for a while."""

    def __init__(self, blocks: bool) -> None:
        from ttf.ops.kernels import attention, ranking, transform

        self.limits: list[tuple[Any, str, Any]] = (
            [
                (ranking, "SHORT", 0),
                (ranking, "CHUNK", 32),
                (transform, "WORKSPACE", 1),
                (transform, "ASSIGN", transform.ASSIGN._replace(columns=16)),
                (attention, "WHOLE", {}),
                (attention, "KEYS", {}),
            ]
            if blocks
            else []
        )

    def __enter__(self) -> None:
        self.before = [(module, name, getattr(module, name)) for module, name, _ in self.limits]
        for module, name, value in self.limits:
            setattr(module, name, value)

    def __exit__(self, *_: object) -> None:
        for module, name, value in self.before:
            setattr(module, name, value)


def outcomes(case: bytes, seed: int, blocks: bool) -> bytes:
    """What comes of a case of the contract; ``blocks``: by the kernels for long sequences."""
    from ttf.ops.kernels import contract

    with _Small(blocks):
        return pickle.dumps(list(contract.outcomes(torch.device("cpu"), [pickle.loads(case)], seed)))


def blocked(name: str, arguments: bytes, blocks: bool) -> bytes:
    """``call`` of a function of ``ttf.ops.kernels.dispatch``, perhaps by the kernels for long sequences."""
    with _Small(blocks):
        return call("ttf.ops.kernels.dispatch", name, arguments)


def call(module: str, name: str, arguments: bytes) -> bytes:
    """``module.name(*arguments)``; arguments and answer are pickled, which keeps the strides of tensors."""
    return pickle.dumps(getattr(importlib.import_module(module), name)(*pickle.loads(arguments)))
