"""Files that are kept from one run to the next: what comes back is what was written, or it is made anew.

Each carries a digest of its content, which shows damage and changes; it is no secret, and no protection from attacks.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, uint8

from ttf.data.files import atomic_write

DIGEST = "digest"
CHANGED = "was changed after it was written"


def signature(identity: Any) -> str:
    """Twelve hexadecimal digits that identify a run, or any plain value: sha256 of it as sorted JSON."""
    text = json.dumps(identity, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Content, as JSON gives it back, with the digest of all that it says."""
    rest = {name: value for name, value in content.items() if name != DIGEST}
    return {**rest, DIGEST: signature(rest)}


def is_sealed(content: Mapping[str, Any]) -> bool:
    """Whether content is as it was written: a digest that is gone is a change, too."""
    return content.get(DIGEST) == sealed(content)[DIGEST]


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, kinds, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().contiguous().flatten().view(uint8).numpy().tobytes())
    return digest.hexdigest()


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors of the CPU atomically. Raises ``ValueError`` where the folder cannot be written."""
    atomic_write(path, partial(save_file, tensors, metadata={DIGEST: tensors_digest(tensors)}))


def _load(path: Path) -> tuple[dict[str, Tensor], str | None]:
    """Tensors, and the digest that the file says they have. Raises ``ValueError``: it is missing or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            return tensors, (file.metadata() or {}).get(DIGEST)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read ({error})") from error


def read_tensors(path: Path, digest: str | None = None) -> dict[str, Tensor]:
    """Tensors of a file.

    Args:
        path: a safetensors file.
        digest: that they must have; None: any.

    Raises:
        ValueError: the file is missing, damaged, or was changed.
    """
    tensors, _ = _load(path)
    if digest not in (None, tensors_digest(tensors)):
        raise ValueError(f"{path} {CHANGED}")
    return tensors


def made_anew(path: Path, reason: str) -> None:
    """One line on a file whose content is computed again."""
    print(f"made anew: {path} {reason}", file=sys.stderr)


def kept_tensors(path: Path) -> dict[str, Tensor] | None:
    """Tensors of a cache; None where there are none, or, with a line that says so, where the file is damaged."""
    if not path.exists():
        return None
    try:
        tensors, said = _load(path)
    except ValueError as error:
        made_anew(path, str(error).removeprefix(f"{path} "))
        return None
    if said != tensors_digest(tensors):
        made_anew(path, CHANGED)
        return None
    return tensors


def write_kept(path: Path, content: Mapping[str, Any]) -> None:
    """Write plain content atomically as JSON. Raises ``ValueError`` where the folder cannot be written."""
    text = json.dumps(sealed(content))
    atomic_write(path, lambda temporary: temporary.write_text(text))


def kept(path: Path) -> dict[str, Any] | None:
    """Content of a cache; None where there is none, or, with a line that says so, where the file is damaged."""
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        made_anew(path, f"cannot be read ({type(error).__name__})")
        return None
    if not isinstance(content, dict) or not is_sealed(content):
        made_anew(path, CHANGED)
        return None
    return {name: value for name, value in content.items() if name != DIGEST}
