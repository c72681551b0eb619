"""Weights: from the package, a file (safetensors or pth), a hub or an official release; no pickled code is run."""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from omegaconf.errors import OmegaConfBaseException
from safetensors.torch import save_file
from torch import Tensor, nn

from ttf.building import build
from ttf.data.files import atomic_write
from ttf.data.transforms import preprocessing
from ttf.errors import MissingError
from ttf.models import hub, mae
from ttf.models.checkpoint_files import named_as, some
from ttf.models.checkpoint_files import read as read_checkpoint
from ttf.models.download import fetch, published, verify

EMBEDDED = Path(__file__).parent / "checkpoints"
OFFICIAL: dict[str, Callable[[dict[str, Any]], dict[str, Tensor]]] = {"mae_vit_h": mae.from_official}
CHANNELS = 3
PATCHES = "patch_embed.proj.weight"
TOWER, NOTHING = "model.model.vision_tower.", "\0"  # beginnings of names


def save_weights(model: nn.Module, path: Path, half: bool = False, without: str = NOTHING) -> None:
    """Write the state dict of ``model`` as safetensors, floating-point tensors in fp16 if ``half``.

    A tensor that the model lists under several names (PS-ViT's position layer) is written under each of them.
    Tensors whose names begin with ``without`` are left out.
    """
    tensors, seen = dict[str, Tensor](), set[int]()
    for key, value in model.state_dict().items():
        if key.startswith(without):
            continue
        value = value.detach().cpu().contiguous()
        tensors[key] = value.clone() if value.data_ptr() in seen else value  # safetensors refuses shared memory
        seen.add(value.data_ptr())
    if half:
        tensors = {k: v.half() if v.is_floating_point() else v for k, v in tensors.items()}
    atomic_write(path, lambda temporary: save_file(tensors, temporary))


def _differences(own: dict[str, Tensor], tensors: dict[str, Tensor]) -> list[str]:
    shapes = sorted(k for k in own.keys() & tensors.keys() if own[k].shape != tensors[k].shape)
    listed = {
        "missing": sorted(own.keys() - tensors.keys()),
        "not in the model": sorted(tensors.keys() - own.keys()),
        "other shape": [f"{k} {tuple(tensors[k].shape)}, not {tuple(own[k].shape)}" for k in shapes],
    }
    return [f"{what}: {some(names)}" for what, names in listed.items() if names]


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
    if not pairs and own.keys() <= tensors.keys():
        return "has tensors that the model has no place for: another architecture, or save the model's state dict alone"
    return " and ".join(parts) or "is of another architecture than the model"


def _check_values(own: dict[str, Tensor], tensors: dict[str, Tensor], source: str) -> None:
    """Raise ``ValueError`` for values that no training leaves: of another kind, not finite, all of them zero."""
    real = [k for k, v in own.items() if v.is_floating_point()]
    odd = sorted(k for k, v in tensors.items() if v.layout != torch.strided or v.is_meta)
    if odd:
        kind = "no values" if tensors[odd[0]].is_meta else "sparse values"
        raise ValueError(f"{source} has {kind} in {some(odd)}: save the state dict of the whole model on the CPU")
    whole = sorted(k for k in real if not tensors[k].is_floating_point())
    if whole:
        kind = str(tensors[whole[0]].dtype).removeprefix("torch.")
        raise ValueError(f"{source} has {kind} values in {some(whole)}: give weights that are not quantised")
    bad = sorted(k for k in real if not torch.isfinite(tensors[k].float()).all())
    if bad:
        raise ValueError(f"{source} has NaN or infinite values in {some(bad)}")
    matrices = [k for k in real if own[k].ndim > 1]
    same = sorted(k for k in matrices if tensors[k].numel() > 1 and (tensors[k] == tensors[k].flatten()[0]).all())
    if matrices and len(same) == len(matrices):
        raise ValueError(f"{source} has the same value everywhere in each of its {len(matrices)} matrices: no training")
    if same:
        print(f"{source}: all values are the same in {some(same)}", file=sys.stderr)


def load_strictly(model: nn.Module, tensors: dict[str, Tensor], source: str) -> None:
    """Load ``tensors`` into ``model``; every name and shape must agree.

    Raises:
        ValueError: names or shapes differ (another architecture, image size, patch size or number of classes), or
            values are not finite, not floating-point, or the same everywhere in each of the matrices.
    """
    own = model.state_dict()
    tensors, done = named_as(own, tensors)
    differences = _differences(own, tensors)
    if differences:
        raise ValueError(f"{source} {_mismatch(model, own, tensors)}; {'; '.join(differences)}")
    if done:
        print(f"{source}: {done}", file=sys.stderr)
    _check_values(own, tensors, source)
    model.load_state_dict(tensors)


def _of_channels(name: str, text: str, source: str) -> tuple[float, ...]:
    try:
        values = tuple(float(value) for value in text.split(","))
    except ValueError:
        values = ()
    if len(values) != CHANNELS or not all(map(math.isfinite, values)) or (name == "std" and min(values) <= 0):
        raise ValueError(f"{source} says that its {name} is {text!r}: expected {CHANNELS} numbers")
    return values


def _apply_metadata(model: nn.Module, metadata: dict[str, str], source: str) -> None:
    """Mean and std that a checkpoint carries take precedence over the architecture's."""
    known = {name: _of_channels(name, metadata[name], source) for name in ("mean", "std") if name in metadata}
    if known:
        cast(Any, model).pretrained_cfg = {**getattr(model, "pretrained_cfg", {}), **known}


def _no_download(tag: str, reason: str, folder: str | Path | None) -> MissingError:
    absent = folder is not None and not Path(folder).is_dir()
    where = f"paths.weights ({folder}, which does not exist)" if absent else "paths.weights"
    return MissingError(
        f"the weights of {tag} could not be downloaded ({reason}). Offline: put {tag}.safetensors into the folder "
        f"{where}, or give checkpoint=FILE, with timm's keys"
    )


def _of_timm(tag: str) -> Path | None:
    """The weights of one of timm's tags, downloaded before."""
    return hub.downloaded(f"timm/{tag}", "model.safetensors")


def _from_hub(network: Any, folder: str | Path | None) -> nn.Module:
    tag = network.model_name
    reason = None if _of_timm(tag) else hub.unreachable()
    if reason:
        raise _no_download(tag, reason, folder)
    try:
        return build(network, pretrained=True)
    except Exception as error:  # huggingface_hub, its HTTP library and timm each raise their own
        raise _no_download(tag, hub.noted(error), folder) from error


def _of_transformers(model: Any) -> Path | None:
    """The file of a model of transformers: in a folder, or among what was downloaded before."""
    try:
        name = str(model.network.name)
    except OmegaConfBaseException:  # nobody has named one
        return None
    for file in ("model.safetensors", "model.safetensors.index.json"):
        if (Path(name) / file).is_file():
            return Path(name) / file
        cached = None if Path(name).is_absolute() else hub.downloaded(name, file)
        if cached:
            return cached
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
    if model.weights == "none":
        return EMBEDDED  # nothing is needed
    if model.weights == "transformers":
        return _of_transformers(model)
    found = next((path for path in _candidates(model, folder, downloads) if path.is_file()), None)
    if found is None and model.weights == "hub":
        return _of_timm(model.network.model_name)
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
    if model.weights == "embedded" and found is None:
        trains = model.get("trained_by") or "mini/cls"
        raise MissingError(
            f"the weights of {model.name} are not embedded yet: ttf finetune experiment={trains} trains "
            f"it; give its file as checkpoint=FILE, or copy it to {candidates[0]}"
        )
    return found


def load_model(
    model: Any,
    checkpoint: str | Path | None = None,
    folder: str | Path | None = None,
    downloads: str | Path | None = None,
    placement: Any = None,
) -> nn.Module:
    """The network of a model config with its trained weights, in evaluation mode.

    Args:
        model: config group ``model``: name, network (a ``_target_``), weights ("embedded", "hub", "official",
            "transformers": its target loads them by itself, or "none": it has nothing that is trained), tower (the
            config of another embedded model, where its encoder is the tower).
        checkpoint: a file instead; see ``checkpoint_files.read``. It is not compared with published hashes.
        folder: looked into first, for files named after timm's tags or like the official ones.
        downloads: official files are looked for there, and downloaded to there; None: nothing is downloaded.
        placement: a ``ttf.models.placement.Placement``, of vision-language models of transformers.

    Raises:
        MissingError: no weights to be had.
        ValueError: weights of another architecture, or a file that is not the official one.
    """
    if model.weights == "none":
        return build(model.network).eval()
    if model.weights == "transformers" and not checkpoint:
        make = build(model.network, _partial_=True)  # a dataclass would not come through Hydra
        return make(pretrained=True, **({"placement": placement} if placement else {})).eval()
    path = Path(checkpoint) if checkpoint else _local(model, folder, downloads)
    if path is None:
        return _from_hub(model.network, folder).eval()
    tensors, metadata = read_checkpoint(path, published(model.name).keys if model.weights == "official" else ())
    if model.name in OFFICIAL:
        tensors = OFFICIAL[model.name](tensors)
    network = build(model.network)
    if model.get("tower"):
        tensors = _tower_of(network, model.tower) | tensors
    load_strictly(network, tensors, str(path))
    _apply_metadata(network, metadata, str(path))
    return network.eval()


def _tower_of(network: nn.Module, tower: Any) -> dict[str, Tensor]:
    """The tower of a LLaVA from the weights of another embedded model; files of the LLaVA leave it out."""
    from ttf.models.llava_mini import take_tower  # transformers: not for every model

    take_tower(network, load_model(tower))
    return {name: value for name, value in network.state_dict().items() if name.startswith(TOWER)}


def fingerprint(model: nn.Module) -> str:
    """sha256 over the state dict: names, and fp32 values in the order of the sorted names."""
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(key.encode())
        value = _offloaded(model, key) if value.is_meta else value
        digest.update(value.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _offloaded(model: nn.Module, key: str) -> Tensor:
    """A value that Accelerate keeps elsewhere until it is used."""
    path, _, name = key.rpartition(".")
    hook: Any = model.get_submodule(path)
    value: Tensor = hook._hf_hook.weights_map[name]
    return value


def file_digest(path: Path) -> str:
    """sha256 of a file. Raises ``ValueError`` where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ValueError(f"no checkpoint at {path} ({error.strerror}): give checkpoint=FILE") from error
