"""Compiles ``operators.cpp`` and its headers for this machine and this torch, into the user's cache.

What is in the cache is loaded into the process, so it has to be this user's own: the folder and the library belong to
him, nobody else may write to them, and the library ends with the SHA-256 of all before it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch

SOURCE = Path(__file__).with_name("operators.cpp")
TEXTS = (SOURCE, *sorted(SOURCE.parent.glob("*.h")))
AVX2 = ("-mavx2", "-mfma")
AVX512 = (*AVX2, "-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw", "-mprefer-vector-width=512")
VECTORS = {"AVX2": AVX2, "AVX512": AVX512}  # by what torch found the processor to have
OPTIONS = (
    "-O3",
    "-std=c++20",
    "-fPIC",
    "-shared",
    "-fvisibility=hidden",
    "-fopenmp",
    "-fno-math-errno",
    "-fno-trapping-math",
)
MARK = b"ttf operators, SHA-256: "  # in front of the digest, behind what the loader of libraries reads
OTHERS = stat.S_IWGRP | stat.S_IWOTH
AGAIN = "python -m ttf.ops.native"


def _flags() -> tuple[str, ...]:
    return (*OPTIONS, *VECTORS.get(torch.backends.cpu.get_cpu_capability(), ()))


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/ttf where that is an absolute path, as its specification says, else ~/.cache/ttf.

    Raises:
        ValueError: this user has no home directory either.
    """
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if named.is_absolute():
        return named / "ttf"
    home = Path(os.path.expanduser("~"))  # unlike Path.home, it raises nothing for a user without an entry
    if not home.is_absolute():
        raise ValueError("there is no cache for the compiled operators: set HOME or XDG_CACHE_HOME")
    return home / ".cache" / "ttf"


@cache
def file_name() -> str:
    """What the operators of this source, this torch and this kind of processor are called."""
    versions = (torch.__version__, str(torch.version.git_version))
    parts = (*(text.read_text() for text in TEXTS), *versions, *_flags())
    return f"operators-{hashlib.sha256(chr(10).join(parts).encode()).hexdigest()[:16]}.so"


def library() -> Path:
    """Where the compiled operators are, or would be.

    Raises:
        ValueError: there is no cache.
    """
    return cache_folder() / file_name()


def _check_owner(path: Path) -> None:
    """Raise ``ValueError`` if the file or folder is another user's, or somebody else may write to it."""
    found = path.stat()
    if found.st_uid != os.geteuid():
        raise ValueError(f"{path} belongs to another user: delete it, or set XDG_CACHE_HOME to a folder of your own")
    if found.st_mode & OTHERS:
        raise ValueError(f"{path} can be written by others: delete it, then {AGAIN}")


def _digest(content: bytes) -> bytes:
    return MARK + hashlib.sha256(content).hexdigest().encode()


def _is_whole(path: Path) -> bool:
    content = path.read_bytes()
    length = len(_digest(b""))
    return content[-length:] == _digest(content[:-length])


def check(path: Path) -> None:
    """Whether a library that is there may be loaded.

    Raises:
        ValueError: it, or its folder, is somebody else's, others may write to it, or it is not what was compiled.
        OSError: it cannot be read.
    """
    _check_owner(path.parent)
    _check_owner(path)
    if not _is_whole(path):
        raise ValueError(f"{path} is damaged: {AGAIN}")


def compiler() -> str | None:
    """The C++ compiler: $CXX, g++ or c++, whichever is found first."""
    return next(filter(None, map(shutil.which, (os.environ.get("CXX") or "g++", "g++", "c++"))), None)


def command(cxx: str, target: Path, options: tuple[str, ...] = ()) -> list[str]:
    """The call that compiles the operators into ``target``, perhaps with further options of the compiler."""
    root = Path(torch.__file__).parent
    include = root / "include"
    headers = [f"-I{include}", f"-I{include / 'torch' / 'csrc' / 'api' / 'include'}"]
    links = [f"-L{root / 'lib'}", "-ltorch_cpu", "-lc10"]
    return [cxx, *_flags(), *options, *headers, str(SOURCE), *links, "-o", str(target)]


def compile_to(target: Path) -> None:
    """Compile the operators, with the digest at the end. Raises ``ValueError``: no compiler, or it fails."""
    cxx = compiler()
    if cxx is None:
        raise ValueError("no C++ compiler: install g++ or name one in CXX")
    run = subprocess.run(command(cxx, target), capture_output=True, text=True)
    if run.returncode:
        raise ValueError(f"{cxx} cannot compile {SOURCE}:\n{run.stderr[-2000:].strip()}")
    content = target.read_bytes()
    target.write_bytes(content + _digest(content))
    target.chmod(0o700)


def build() -> Path:
    """Compile the operators, unless they are there and whole; a file that another process puts there is as good.

    Returns:
        The library.

    Raises:
        ValueError: no compiler, or it fails, with what it said; no cache, or one that is not this user's alone.
        OSError: the cache cannot be written.
    """
    path = library()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    _check_owner(path.parent)
    if path.exists():
        _check_owner(path)
        if _is_whole(path):
            return path
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        compile_to(made)
        made.replace(path)
    return path
