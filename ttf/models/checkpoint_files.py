"""Files of weights as trainings write them: safetensors (also in shards), torch.save; no pickled code is run."""

from __future__ import annotations

import json
import re
import sys
import tarfile
import warnings
import zipfile
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

Tensors = dict[str, Tensor]
SHOWN = 4
PACKED = 10  # more times its own size no file of weights holds
# where tensors lie, the preferred place first
NESTS = ("state_dict_ema", "state_dict", "model", "model_state_dict", "module")
# what torch's wrappers put into names, anywhere
WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|module)\.")
# beside the tensors old training checkpoints hold the options of the training and numpy numbers, such as the best top-1
NUMPY_SCALAR: Any = np.float64(0).__reduce__()[0]
HARMLESS: list[Any] = [
    Namespace,
    np.dtype,
    *{type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.bool_)},
    *((NUMPY_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]
LONG, MAGIC = b"\x8a\x0a", bytes.fromhex("6cfc9c46f9206aa85019")  # of torch.save before it wrote zip archives
AGAIN = "download or copy it again"
SAVE = "save its state dict alone, or give another file"


COMPRESSED = "is compressed: unpack it first"
OTHER_FILES = {  # by how they begin
    **dict.fromkeys((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf", b"\x28\xb5\x2f\xfd"), COMPRESSED),
    b"\x89HDF": "is an HDF5 file (Keras): convert it to safetensors",
    b"GGUF": "is a GGUF file (llama.cpp): give the file that it was made from",
    b"\x93NUMPY": "is a NumPy array (npy): convert it to safetensors",
    **dict.fromkeys((b"\x89PNG", b"\xff\xd8\xff"), "is an image and not weights: give a safetensors or pth file"),
    b"\x7fELF": "is a program and not weights: give a safetensors or pth file",
    b"SQLite format": "is a database and not weights: give a safetensors or pth file",
}


def some(names: Sequence[str]) -> str:
    """The first names of a list, and how many there are."""
    return ", ".join(names[:SHOWN]) + (f", ... ({len(names)} in all)" if len(names) > SHOWN else "")


def _foreign(path: Path) -> str | None:
    """What a file is that holds no weights in a form that is read here, with what to do about it."""
    with open(path, "rb") as file:
        begin = file.read(512)
    text = begin.lstrip().lower()
    named = next((words for start, words in OTHER_FILES.items() if begin.startswith(start)), None)
    if not begin:
        return f"is truncated or corrupt (it is empty): {AGAIN}"
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "is a web page and not weights: open its address in a browser, and download the file behind it"
    if begin.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS and not weights: run git lfs pull, or download the file itself"
    if named:
        return named
    if path.suffix != ".json" and _is_text(begin):
        return "is truncated or corrupt, or a text and not weights: give a safetensors or pth file"
    if begin.startswith(b"PK"):
        return _foreign_zip(path)
    known = path.suffix == ".json" or _is_safetensors(path) or _is_old_pickle(begin) or tarfile.is_tarfile(path)
    what = (
        "a pickle that torch.save has not written" if begin[:1] == b"\x80" else "no file of weights that is read here"
    )
    return None if known else f"is {what}: give a safetensors or pth file"


def _is_safetensors(path: Path) -> bool:
    """Whether a file begins like one: the length of a header, and its brace; or whether its name says so."""
    with open(path, "rb") as file:
        return file.read(9)[8:] == b"{" or path.suffix.lower() == ".safetensors"


def _is_old_pickle(begin: bytes) -> bool:
    """Whether a file begins like those of torch.save up to 1.5: pickle, protocol 2 or later, of a magic number."""
    return begin[:1] == b"\x80" and LONG + MAGIC in begin[:20]


def _is_text(begin: bytes) -> bool:
    """Whether a file that begins so is text; the last letter may be cut in two."""
    try:
        text = begin.decode() if len(begin) < 512 else begin[:-3].decode()
    except UnicodeDecodeError:
        return False
    return all(letter.isprintable() or letter in "\t\n\r" for letter in text)


def _foreign_zip(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names, unpacked = archive.namelist(), sum(part.file_size for part in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return None
    if any(name.endswith(".npy") for name in names):
        return "holds NumPy arrays (npz): convert it to safetensors"
    if any(name.endswith("constants.pkl") for name in names):
        return f"is a TorchScript program: {SAVE}"
    if not any(name.endswith("data.pkl") for name in names):
        return "is a zip archive without weights: unpack it first"
    if unpacked > PACKED * path.stat().st_size:  # torch packs nothing
        return f"is said to hold {unpacked / 2**20:.0f} MiB, many times its own size: {AGAIN}"
    return None


def _read_safetensors(path: Path) -> tuple[Tensors, dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118 (no mapping)


def _read_shards(path: Path) -> tuple[Tensors, dict[str, str]]:
    """The tensors of ``*.safetensors.index.json``: its ``weight_map`` says which file beside it has which."""
    try:
        index = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is no index of shards ({error}): {AGAIN}") from None
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise ValueError(f"{path} is no index of shards (weight_map): give a safetensors or pth file")
    files = sorted(set(places.values()))
    outside = [name for name in files if Path(name).name != name]
    missing = [name for name in files if name not in outside and not (path.parent / name).is_file()]
    if outside or missing:
        raise ValueError(f"{path} names shards that are not beside it: {some(outside or missing)}")
    tensors: Tensors = {}
    for name in files:
        tensors |= read(path.parent / name)[0]
    absent = sorted(places.keys() - tensors.keys())
    if absent:
        raise ValueError(f"the shards of {path} lack {some(absent)}: {AGAIN}")
    return tensors, {}


def _tensors_alone(content: Any) -> bool:
    return isinstance(content, Mapping) and bool(content) and all(isinstance(v, Tensor) for v in content.values())


def _unnested(path: Path, content: Any, prefer: Sequence[str]) -> Any:
    """The state dict in what a training saved: under a known name, or the only one that there is."""
    while isinstance(content, Mapping) and not _tensors_alone(content):
        nests = [name for name in (*prefer, *NESTS) if isinstance(content.get(name), Mapping)]
        nest = nests[0] if nests else None
        _say_which(path, content, nest)
        if nest is None:
            found = [str(name) for name, value in content.items() if _tensors_alone(value)]
            if len(found) > 1:
                raise ValueError(f"{path} has several state dicts ({some(found)}): save the one to load alone")
            nest = found[0] if found else None
        if nest is None:
            break
        content = content[nest]
    return content


def _say_which(path: Path, content: Mapping[Any, Any], taken: str | None) -> None:
    """One line where a file has other weights, too: averaged ones, or those of a teacher."""
    others = [str(name) for name, value in content.items() if name != taken and _tensors_alone(value)]
    if taken and others:
        print(f"{path}: {taken} was taken, and {some(others)} left", file=sys.stderr)


def _of_openmmlab() -> list[Any]:
    """What files of OpenMMLab's runner hold beside the tensors: a history of numbers. None where it is not loaded."""
    module = sys.modules.get("mmengine.logging.history_buffer")
    kept = [getattr(module, "HistoryBuffer")] if module else []  # noqa: B009 (mmengine has no types)
    return [*kept, np.ndarray, getattr(np, "_core", np).multiarray._reconstruct] if kept else kept


def _read_pickle(path: Path, prefer: Sequence[str]) -> tuple[Tensors, dict[str, str]]:
    with torch.serialization.safe_globals([*HARMLESS, *_of_openmmlab()]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, on what is refused below
        content = _unnested(path, torch.load(path, map_location="cpu", weights_only=True), prefer)
    if not _tensors_alone(content):
        other = (
            [str(k) for k, v in content.items() if not isinstance(v, Tensor)] if isinstance(content, Mapping) else []
        )
        what = f"beside its tensors {some(other)}" if other else f"a {type(content).__name__}"
        raise ValueError(f"{path} holds no state dict (a mapping from names to tensors) but {what}: {SAVE}")
    return {str(key): value for key, value in content.items()}, {}


def _reason(error: Exception) -> str:
    """Why a file could not be read, in one line, without what torch advises: to run the code in the file."""
    text = str(error)
    inner = re.search(r"WeightsUnpickler error:\s*(.+)", text)
    line = inner[1] if inner else text.strip().splitlines()[0] if text.strip() else type(error).__name__
    return "its pickle is broken" if "weights_only" in line else line.strip()[:200]


def _runs_code(error: Exception) -> str | None:
    """The object in a pickle that only running its code would give."""
    found = re.search(r"(?:GLOBAL|Unsupported (?:global|class)\S*:?(?: GLOBAL)?) ([\w.]+)", str(error))
    return found[1] if found else None


def _check_file(path: Path) -> None:
    """Raise ``ValueError`` where there is no regular file, or one of something else."""
    if re.match(r"\w+:/", str(path)):
        raise ValueError(f"checkpoint={path} is an address: download it, and give the file")
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give the file of weights in it (safetensors or pth)")
    if not path.is_file():
        raise ValueError(f"no checkpoint at {path}: give checkpoint=FILE (safetensors or pth)")
    try:
        what = _foreign(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from error
    if what:
        raise ValueError(f"{path} {what}")


def _read(path: Path, prefer: Sequence[str]) -> tuple[Tensors, dict[str, str]]:
    if path.suffix == ".json":
        return _read_shards(path)
    return _read_safetensors(path) if _is_safetensors(path) else _read_pickle(path, prefer)


def read(path: Path, prefer: Sequence[str] = ()) -> tuple[Tensors, dict[str, str]]:
    """Tensors and metadata of a checkpoint file, by their names without those of torch's wrappers (DDP, compile, FSDP).

    Args:
        path: ``*.safetensors``, an index of shards of it (``*.index.json``), or a ``torch.save`` file (read with
            ``weights_only=True``; a state dict may be nested, averaged weights under "state_dict_ema" are preferred to
            those under "state_dict", "model" or "module").
        prefer: names under which the state dict is looked for first.

    Raises:
        ValueError: the file is missing, truncated, corrupt, something else, or holds objects that only running its code
            would give.
    """
    _check_file(path)
    try:
        tensors, metadata = _read(path, prefer)
        return unwrapped(tensors), metadata
    except ValueError:
        raise
    except Exception as error:  # safetensors, zip and pickle have each their own, and torch advice that is not ours
        code = _runs_code(error)
        if code:
            said = f"{path} holds more than tensors ({code}), which are loaded by running code from the file: {SAVE}"
            raise ValueError(said) from None
        raise ValueError(f"{path} is truncated or corrupt ({_reason(error)}): {AGAIN}") from None


def unwrapped(tensors: Tensors) -> Tensors:
    """Tensors by their names without those of torch's wrappers."""
    found = {WRAPPERS.sub("", name): value for name, value in tensors.items()}
    return found if len(found) == len(tensors) else tensors  # otherwise they are names of the model


def _without_prefix(own: Tensors, tensors: Tensors) -> tuple[Tensors, str]:
    """Tensors without what stands before the model's names in all of these, such as Lightning's "model."."""
    first = next(iter(own))
    starts = [name.removesuffix(first) for name in tensors if name.endswith(f".{first}")]
    prefix = next((start for start in starts if all(f"{start}{name}" in tensors for name in own)), "")
    return {name.removeprefix(prefix): value for name, value in tensors.items()}, prefix


def named_as(own: Tensors, tensors: Tensors) -> tuple[Tensors, str]:
    """A file's tensors by the model's names, and in words what was done to their own.

    One common prefix is taken off; single numbers beside the model (SWA's ``n_averaged``) are left out.

    Args:
        own: the model's state dict.
        tensors: of the file, as ``read`` gives them.
    """
    if own.keys() == tensors.keys():
        return tensors, ""
    plain = unwrapped(own)
    found, prefix = _without_prefix(plain, unwrapped(tensors))
    counters = sorted(name for name in found.keys() - plain.keys() if found[name].ndim == 0)
    whole = plain.keys() <= found.keys()
    if whole:
        found = {name: value for name, value in found.items() if name not in counters}
    if whole and len(found) == len(plain):
        found = {name: found[bare] for name, bare in zip(own, plain, strict=True)}
    done = [f"names were taken without {prefix!r}"] if prefix else []
    done += [f"{some(counters)} left out"] if counters and whole else []
    return found, ", ".join(done)
