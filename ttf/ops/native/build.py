"""Compiles ``operators.cpp`` and its headers for this machine and this torch, into the user's cache."""

from __future__ import annotations

import hashlib
import os
import shutil
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


def _flags() -> tuple[str, ...]:
    return (*OPTIONS, *VECTORS.get(torch.backends.cpu.get_cpu_capability(), ()))


@cache
def library() -> Path:
    """Where the compiled operators of this source, this torch and this kind of processor are, or would be."""
    key = hashlib.sha256("\n".join((*(text.read_text() for text in TEXTS), torch.__version__, *_flags())).encode())
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "ttf" / f"operators-{key.hexdigest()[:16]}.so"


def compiler() -> str | None:
    """The C++ compiler: $CXX, g++ or c++, whichever is found first."""
    return next(filter(None, map(shutil.which, (os.environ.get("CXX") or "g++", "g++", "c++"))), None)


def command(cxx: str, target: Path) -> list[str]:
    """The call that compiles the operators into ``target``."""
    root = Path(torch.__file__).parent
    include = root / "include"
    headers = [f"-I{include}", f"-I{include / 'torch' / 'csrc' / 'api' / 'include'}"]
    links = [f"-L{root / 'lib'}", "-ltorch_cpu", "-lc10"]
    return [cxx, *_flags(), *headers, str(SOURCE), *links, "-o", str(target)]


def build() -> Path:
    """Compile the operators, unless that is done; a file that another process puts there meanwhile is as good.

    Returns:
        The library.

    Raises:
        ValueError: no compiler, or it fails; with what it said.
    """
    path, cxx = library(), compiler()
    if path.exists():
        return path
    if cxx is None:
        raise ValueError("no C++ compiler: install g++ or name one in CXX")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        run = subprocess.run(command(cxx, made), capture_output=True, text=True)
        if run.returncode:
            raise ValueError(f"{cxx} cannot compile {SOURCE}:\n{run.stderr[-2000:].strip()}")
        made.replace(path)
    return path
