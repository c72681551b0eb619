"""Weights: from the package, from a file (safetensors or pth), or from a hub; always without running pickled code."""

from __future__ import annotations

import hashlib
import pickle
import zipfile
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ttf.building import build
from ttf.data.files import atomic_write

EMBEDDED = Path(__file__).parent / "checkpoints"
SHOWN = 4


def save_weights(model: nn.Module, path: Path, half: bool = False) -> None:
    """Write the state dict of ``model`` as safetensors, floating-point tensors in fp16 if ``half``."""
    tensors = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    if half:
        tensors = {k: v.half() if v.is_floating_point() else v for k, v in tensors.items()}
    atomic_write(path, lambda temporary: save_file(tensors, temporary))


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118 (no mapping)


def _read_pickle(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    content: Any = torch.load(path, map_location="cpu", weights_only=True)
    for nest in ("model", "state_dict", "model_state_dict"):
        if isinstance(content, dict) and isinstance(content.get(nest), dict):
            content = content[nest]
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise ValueError(f"{path} holds no state dict (a mapping from names to tensors)")
    return {key.removeprefix("module."): value for key, value in content.items()}, {}


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a checkpoint file.

    Args:
        path: ``*.safetensors``, or a ``torch.save`` file (read with ``weights_only=True``; a state dict may be
            nested under "model" or "state_dict").

    Raises:
        ValueError: the file is missing, truncated, corrupt, or holds more than tensors.
    """
    if not path.is_file():
        raise ValueError(f"no checkpoint at {path}: give checkpoint=FILE (safetensors or pth)")
    try:
        return _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    except (SafetensorError, RuntimeError, EOFError, zipfile.BadZipFile, pickle.UnpicklingError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is truncated or corrupt ({reason}): download or copy it again") from error


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f", ... ({len(names)} in all)" if len(names) > SHOWN else "")


def _differences(own: dict[str, Tensor], tensors: dict[str, Tensor]) -> list[str]:
    shapes = sorted(k for k in own.keys() & tensors.keys() if own[k].shape != tensors[k].shape)
    listed = {
        "missing": sorted(own.keys() - tensors.keys()),
        "not in the model": sorted(tensors.keys() - own.keys()),
        "other shape": [f"{k} {tuple(tensors[k].shape)}, not {tuple(own[k].shape)}" for k in shapes],
    }
    return [f"{what}: {_some(names)}" for what, names in listed.items() if names]


def load_strictly(model: nn.Module, tensors: dict[str, Tensor], source: str) -> None:
    """Load ``tensors`` into ``model``; every name and shape must agree.

    Raises:
        ValueError: names or shapes differ (another architecture or another size), or a value is not finite.
    """
    differences = _differences(model.state_dict(), tensors)
    if differences:
        raise ValueError(f"{source} is of another architecture than the model: {'; '.join(differences)}")
    bad = sorted(k for k, v in tensors.items() if v.is_floating_point() and not torch.isfinite(v).all())
    if bad:
        raise ValueError(f"{source} has NaN or infinite values in {_some(bad)}")
    model.load_state_dict(tensors)


def _apply_metadata(model: nn.Module, metadata: dict[str, str]) -> None:
    """Mean and std that a checkpoint carries take precedence over the architecture's."""
    known = {k: tuple(float(v) for v in metadata[k].split(",")) for k in ("mean", "std") if k in metadata}
    if known:
        cast(Any, model).pretrained_cfg = {**getattr(model, "pretrained_cfg", {}), **known}


def _from_hub(network: Any) -> nn.Module:
    try:
        return build(network, pretrained=True)
    except Exception as error:  # huggingface_hub, urllib and requests each raise their own
        raise ValueError(
            f"the weights of {network.model_name} could not be downloaded ({type(error).__name__}: "
            f"{str(error).splitlines()[0][:200]}). Offline: give checkpoint=FILE with timm's keys"
        ) from error


def _local(model: Any, checkpoint: str | Path | None, folder: str | Path | None) -> Path | None:
    """The file that holds the weights, or None where they come from a hub."""
    if checkpoint:
        return Path(checkpoint)
    if model.weights == "embedded":
        return EMBEDDED / f"{model.name}.safetensors"
    candidate = Path(folder) / f"{model.network.model_name}.safetensors" if folder else None
    return candidate if candidate is not None and candidate.is_file() else None


def load_model(model: Any, checkpoint: str | Path | None = None, folder: str | Path | None = None) -> nn.Module:
    """The network of a model config with its trained weights, in evaluation mode.

    Args:
        model: config group ``model``: name, network (a ``_target_``), weights ("embedded" or "hub").
        checkpoint: a file instead; see ``read_checkpoint``.
        folder: looked into before the hub, for files named after timm's tags.

    Raises:
        ValueError: no weights to be had, or weights of another architecture.
    """
    path = _local(model, checkpoint, folder)
    if path is None:
        return _from_hub(model.network).eval()
    network = build(model.network)
    tensors, metadata = read_checkpoint(path)
    load_strictly(network, tensors, str(path))
    _apply_metadata(network, metadata)
    return network.eval()


def fingerprint(model: nn.Module) -> str:
    """sha256 over the state dict: names, and fp32 values in the order of the sorted names."""
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """sha256 of a file. Raises ``ValueError`` where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ValueError(f"no checkpoint at {path} ({error.strerror}): give checkpoint=FILE") from error
