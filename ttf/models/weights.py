"""Weights: from the package, a file (safetensors or pth), a hub or an official release; no pickled code is run."""

from __future__ import annotations

import hashlib
import math
import pickle
import re
import sys
import zipfile
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import LocalEntryNotFoundError
from omegaconf.errors import OmegaConfBaseException
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ttf.building import build
from ttf.data.files import atomic_write
from ttf.data.transforms import preprocessing
from ttf.errors import MissingError
from ttf.models import mae
from ttf.models.download import fetch, published, verify

EMBEDDED = Path(__file__).parent / "checkpoints"
SHOWN = 4
NESTS = ("state_dict_ema", "state_dict", "model", "model_state_dict")  # where tensors lie, the preferred place first
# beside the tensors old training checkpoints hold the options of the training and numpy numbers, such as the best top-1
NUMPY_SCALAR: Any = np.float64(0).__reduce__()[0]
HARMLESS: list[Any] = [
    Namespace,
    np.dtype,
    *{type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.bool_)},
    *((NUMPY_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]
OFFICIAL: dict[str, Callable[[dict[str, Any]], dict[str, Tensor]]] = {"mae_vit_h": mae.from_official}
PATCHES = "patch_embed.proj.weight"
_unreachable: list[str] = []  # why the hub could not be reached; a sweep over many models finds out once


def save_weights(model: nn.Module, path: Path, half: bool = False) -> None:
    """Write the state dict of ``model`` as safetensors, floating-point tensors in fp16 if ``half``.

    A tensor that the model lists under several names (PS-ViT's position layer) is written under each of them.
    """
    tensors, seen = dict[str, Tensor](), set[int]()
    for key, value in model.state_dict().items():
        value = value.detach().cpu().contiguous()
        tensors[key] = value.clone() if value.data_ptr() in seen else value  # safetensors refuses shared memory
        seen.add(value.data_ptr())
    if half:
        tensors = {k: v.half() if v.is_floating_point() else v for k, v in tensors.items()}
    atomic_write(path, lambda temporary: save_file(tensors, temporary))


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118 (no mapping)


def _unnested(content: Any, prefer: Sequence[str]) -> Any:
    while isinstance(content, dict):
        nest = next((name for name in (*prefer, *NESTS) if isinstance(content.get(name), dict)), None)
        if nest is None:
            break
        content = content[nest]
    return content


def _of_openmmlab() -> list[Any]:
    """What files of OpenMMLab's runner hold beside the tensors: a history of numbers. None where it is not loaded."""
    module = sys.modules.get("mmengine.logging.history_buffer")
    kept = [getattr(module, "HistoryBuffer")] if module else []  # noqa: B009 (mmengine has no types)
    return [*kept, np.ndarray, getattr(np, "_core", np).multiarray._reconstruct] if kept else kept


def _read_pickle(path: Path, prefer: Sequence[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    with torch.serialization.safe_globals([*HARMLESS, *_of_openmmlab()]):
        content = _unnested(torch.load(path, map_location="cpu", weights_only=True), prefer)
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise ValueError(f"{path} holds no state dict (a mapping from names to tensors)")
    return {key.removeprefix("module."): value for key, value in content.items()}, {}


def read_checkpoint(path: Path, prefer: Sequence[str] = ()) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a checkpoint file.

    Args:
        path: ``*.safetensors``, or a ``torch.save`` file (read with ``weights_only=True``; a state dict may be
            nested, averaged weights under "state_dict_ema" are preferred to those under "state_dict" or "model").
        prefer: names under which the state dict is looked for first.

    Raises:
        ValueError: the file is missing, truncated, corrupt, or holds objects that only running its code would give.
    """
    if not path.is_file():
        raise ValueError(f"no checkpoint at {path}: give checkpoint=FILE (safetensors or pth)")
    try:
        return _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path, prefer)
    except (SafetensorError, RuntimeError, EOFError, zipfile.BadZipFile, pickle.UnpicklingError, KeyError) as error:
        refused = re.search(r"GLOBAL (\S+) was not an allowed", str(error))
        if refused:
            raise ValueError(
                f"{path} holds more than tensors ({refused[1]}), which are loaded by running code from the file: "
                "save its state dict alone, or give another file"
            ) from error
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


def _other_size(model: nn.Module, tokens: int, wanted: int) -> str:
    """For models whose patches are equally large; a class token does not change the root."""
    pixels = preprocessing(model).input_size[1]
    side = math.isqrt(tokens) * pixels // math.isqrt(wanted)
    sizes = f"{side}x{side} images ({tokens} tokens), the model for {pixels}x{pixels} ({wanted} tokens)"
    return f"is made for {sizes}: take the file of this size"


def _mismatch(model: nn.Module, own: dict[str, Tensor], tensors: dict[str, Tensor]) -> str:
    """What the tensors are made for, other than the model, as far as their shapes tell."""
    pairs = {k: (own[k], tensors[k]) for k in own.keys() & tensors.keys() if own[k].shape != tensors[k].shape}
    parts = []
    for name, (mine, given) in sorted(pairs.items()):
        if name == PATCHES and mine.shape[:2] == given.shape[:2]:
            parts.append(f"has patches of {given.shape[-1]} pixels, the model of {mine.shape[-1]}")
        elif name == "pos_embed" and mine.shape[2:] == given.shape[2:] and PATCHES not in pairs:
            parts.append(_other_size(model, given.shape[1], mine.shape[1]))
        elif name == "point_coord":
            parts.append(f"samples {given.shape[1]} points, the model {mine.shape[1]}")
        elif name == "head.weight" and mine.shape[1:] == given.shape[1:]:
            parts.append(f"has {len(given)} classes, the model {len(mine)}")
    return " and ".join(parts) or "is of another architecture than the model"


def load_strictly(model: nn.Module, tensors: dict[str, Tensor], source: str) -> None:
    """Load ``tensors`` into ``model``; every name and shape must agree.

    Raises:
        ValueError: names or shapes differ (another architecture, image size, patch size or number of classes), or a
            value is not finite.
    """
    own = model.state_dict()
    differences = _differences(own, tensors)
    if differences:
        raise ValueError(f"{source} {_mismatch(model, own, tensors)}; {'; '.join(differences)}")
    bad = sorted(k for k, v in tensors.items() if v.is_floating_point() and not torch.isfinite(v).all())
    if bad:
        raise ValueError(f"{source} has NaN or infinite values in {_some(bad)}")
    model.load_state_dict(tensors)


def _apply_metadata(model: nn.Module, metadata: dict[str, str]) -> None:
    """Mean and std that a checkpoint carries take precedence over the architecture's."""
    known = {k: tuple(float(v) for v in metadata[k].split(",")) for k in ("mean", "std") if k in metadata}
    if known:
        cast(Any, model).pretrained_cfg = {**getattr(model, "pretrained_cfg", {}), **known}


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _no_download(tag: str, reason: str) -> MissingError:
    return MissingError(
        f"the weights of {tag} could not be downloaded ({reason}). Offline: put {tag}.safetensors into the folder "
        "paths.weights, or give checkpoint=FILE, with timm's keys"
    )


def _from_hub(network: Any) -> nn.Module:
    tag = network.model_name
    if _unreachable:  # every attempt takes a minute
        raise _no_download(tag, _unreachable[0])
    try:
        return build(network, pretrained=True)
    except Exception as error:  # huggingface_hub, its HTTP library and timm each raise their own
        causes = list(_causes(error))
        reason = f"{type(causes[-1]).__name__}: {(str(causes[-1]) or 'no reason given').splitlines()[0][:200]}"
        if any(isinstance(cause, LocalEntryNotFoundError) for cause in causes):
            _unreachable.append(reason)
        raise _no_download(tag, reason) from error


def _of_transformers(model: Any) -> Path | None:
    """The file of a model of transformers: in a folder, or among what was downloaded before."""
    try:
        name = str(model.network.name)
    except OmegaConfBaseException:  # nobody has named one
        return None
    for file in ("model.safetensors", "model.safetensors.index.json"):
        if (Path(name) / file).is_file():
            return Path(name) / file
        cached = None if Path(name).is_absolute() else try_to_load_from_cache(name, file)
        if isinstance(cached, str):
            return Path(cached)
    return None


def _candidates(model: Any, folder: str | Path | None, downloads: str | Path | None) -> list[Path]:
    """Files that would hold the weights of a model config, in the order in which they are looked for."""
    if model.weights == "embedded":
        return [EMBEDDED / f"{model.name}.safetensors"]
    if model.weights == "official":
        return [published(model.name).path(place) for place in (folder, downloads) if place]
    return [Path(folder) / f"{model.network.model_name}.safetensors"] if folder else []


def at_hand(model: Any, folder: str | Path | None = None, downloads: str | Path | None = None) -> Path | None:
    """The file on this machine that holds the weights of a model config; None: they would be downloaded.

    Args:
        model, folder, downloads: see ``load_model``.
    """
    if model.weights == "transformers":
        return _of_transformers(model)
    found = next((path for path in _candidates(model, folder, downloads) if path.is_file()), None)
    if found is None and model.weights == "hub":
        cached = try_to_load_from_cache(f"timm/{model.network.model_name}", "model.safetensors")
        return Path(cached) if isinstance(cached, str) else None
    return found


def _official(name: str, found: Path | None, downloads: str | Path | None) -> Path:
    """The verified official file of a model: the one that was found, or one from the place where it is published."""
    entry = published(name)
    if found is not None:
        verify(entry, found)
        return found
    if downloads is None:
        raise MissingError(f"no weights of {name}: {entry.by_hand('a folder given as paths.weights')}")
    return fetch(entry, downloads)


def _local(model: Any, folder: str | Path | None, downloads: str | Path | None) -> Path | None:
    """The file that holds the weights, or None where they come from a hub."""
    candidates = _candidates(model, folder, downloads)
    found = next((path for path in candidates if path.is_file()), None)
    if model.weights == "official":
        return _official(model.name, found, downloads)
    return candidates[0] if model.weights == "embedded" else found


def load_model(
    model: Any,
    checkpoint: str | Path | None = None,
    folder: str | Path | None = None,
    downloads: str | Path | None = None,
) -> nn.Module:
    """The network of a model config with its trained weights, in evaluation mode.

    Args:
        model: config group ``model``: name, network (a ``_target_``), weights ("embedded", "hub", "official" or
            "transformers": its target loads them by itself).
        checkpoint: a file instead; see ``read_checkpoint``. It is not compared with published hashes.
        folder: looked into first, for files named after timm's tags or like the official ones.
        downloads: official files are looked for there, and downloaded to there; None: nothing is downloaded.

    Raises:
        MissingError: no weights to be had.
        ValueError: weights of another architecture, or a file that is not the official one.
    """
    if model.weights == "transformers" and not checkpoint:
        return build(model.network, pretrained=True).eval()
    path = Path(checkpoint) if checkpoint else _local(model, folder, downloads)
    if path is None:
        return _from_hub(model.network).eval()
    tensors, metadata = read_checkpoint(path, published(model.name).keys if model.weights == "official" else ())
    if model.name in OFFICIAL:
        tensors = OFFICIAL[model.name](tensors)
    network = build(model.network)
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
