"""Outcomes as published rows store them: small, without loss, each tensor once.

A tensor is named by the digest of its content, so what many rows share (the pixels of a class, zeros of uncompressed
models) takes no room, and damage shows. Its bytes are sorted by their place in a number (all first bytes, then all
second ones), since those resemble each other, and compressed by zlib; booleans are bits.
"""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from ttf.results.store import Row

SLICES = 8  # a tensor (n, k, ...) with at most so many slices k is stored slice by slice: rows share some of them
Outcomes = dict[str, Tensor]


def _digest(part: Tensor) -> str:
    text = f"{part.dtype} {tuple(part.shape)}".encode()
    return hashlib.sha256(text + part.numpy().tobytes()).hexdigest()[:16]


def _squeezed(part: Tensor) -> Tensor:
    """A tensor as bytes (b,) uint8."""
    values = part.numpy()
    raw = np.packbits(values) if part.dtype == torch.bool else values.reshape(-1).view(np.uint8)
    content = zlib.compress(raw.reshape(-1, part.dtype.itemsize).T.tobytes(), 9)
    return torch.from_numpy(np.frombuffer(content, np.uint8).copy())


def _unsqueezed(stored: Tensor, dtype: torch.dtype, shape: list[int]) -> Tensor:
    """The tensor from its bytes. Raises one of the errors of ``unpack`` where they are damaged."""
    size = math.prod(shape) * dtype.itemsize  # of bits it is less
    content = zlib.decompressobj().decompress(stored.numpy().tobytes(), size + 1)  # not more than the row says
    raw = np.frombuffer(content, np.uint8)
    if dtype == torch.bool:
        return torch.from_numpy(np.unpackbits(raw, count=math.prod(shape))).bool().view(shape)
    return torch.from_numpy(raw.reshape(dtype.itemsize, -1).T.copy().reshape(-1)).view(dtype).view(shape)


def _is_sliced(shape: list[int]) -> bool:
    return len(shape) >= 3 and shape[1] <= SLICES


def pack(outcomes: Outcomes) -> tuple[dict[str, Row], dict[str, Tensor]]:
    """Outcomes (n, ...) as they are stored.

    Returns:
        What a row says of them, by outcome (type, shape, names of tensors), and the tensors (b,) uint8 by name.
    """
    said: dict[str, Row] = {}
    stored: dict[str, Tensor] = {}
    for name, values in outcomes.items():
        shape = list(values.shape)
        parts = [part.contiguous() for part in (values.unbind(1) if _is_sliced(shape) else (values,))]
        names = [_digest(part) for part in parts]
        stored |= {digest: _squeezed(part) for digest, part in zip(names, parts, strict=True)}
        said[name] = {"dtype": str(values.dtype).removeprefix("torch."), "shape": shape, "tensors": names}
    return said, stored


def unpack(said: Mapping[str, Row], stored: Mapping[str, Tensor]) -> Outcomes:
    """Outcomes from what a row says of them. Raises ``ValueError`` where a tensor is missing or damaged."""
    found: Outcomes = {}
    for name, one in said.items():
        try:
            found[name] = _joined(one, stored)
        except (LookupError, TypeError, AttributeError, ValueError, RuntimeError, zlib.error) as error:
            raise ValueError(
                f"outcome {name} is missing or damaged: take the file from the repository again"
            ) from error
    return found


def _joined(one: Row, stored: Mapping[str, Tensor]) -> Tensor:
    """A tensor from its slices. Raises one of the errors of ``unpack`` where something is missing or damaged."""
    shape, dtype = one["shape"], getattr(torch, one["dtype"])
    sliced = _is_sliced(shape)
    parts = [_unsqueezed(stored[name], dtype, shape[:1] + shape[2:] if sliced else shape) for name in one["tensors"]]
    if [_digest(part) for part in parts] != one["tensors"]:
        raise ValueError("another content")
    return torch.stack(parts, dim=1) if sliced else parts[0]
