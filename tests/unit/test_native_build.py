"""Compiling the operators: where to, with what, and what is said where it cannot be done."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ttf.ops import native
from ttf.ops.native import build

COUNT = """
import ttf
from ttf.models.vit_mini import vit_mini
from ttf.measure import gmacs
from ttf.ops import native
model = vit_mini().eval()
ttf.apply(model, ratio=0.5)
print(native.switched_on(), gmacs(model, (3, *model.patch_embed.img_size)))
"""


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache without the operators."""
    monkeypatch.setattr(build, "library", lambda: tmp_path / "cache" / "operators.so")
    return tmp_path


def _compiler(folder: Path, script: str) -> str:
    path = folder / "compiler"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_no_compiler_is_said(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(empty))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ValueError, match=r"install g\+\+ or name one in CXX"):
        build.build()


def test_what_the_compiler_says_is_shown(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", _compiler(empty, "echo no such header >&2; exit 3"))
    with pytest.raises(ValueError, match="no such header"):
        build.build()
    assert not list((empty / "cache").iterdir())


def test_the_compiler_of_the_environment_is_taken_and_its_file_put_in_place(
    empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", _compiler(empty, 'for last; do :; done; echo "$@" > "$last"'))
    path = build.build()
    assert str(build.SOURCE) in path.read_text()
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    monkeypatch.setenv("CXX", _compiler(empty, "exit 1"))
    assert build.build() == path  # it is there already


def test_the_library_is_for_this_source_torch_and_processor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    names = {build.library.__wrapped__()}
    assert {path.parent for path in names} == {tmp_path / "ttf"}
    monkeypatch.setattr(build, "TEXTS", build.TEXTS[:-1])  # of the headers, too
    names.add(build.library.__wrapped__())
    monkeypatch.setattr(build, "_flags", lambda: ("-mother",))
    names.add(build.library.__wrapped__())
    monkeypatch.setattr(build.torch, "__version__", "2.0")
    names.add(build.library.__wrapped__())
    assert len(names) == 4


def test_the_command_builds_once_and_says_where(tmp_path: Path) -> None:
    fresh = {"XDG_CACHE_HOME": str(tmp_path), "CXX": _compiler(tmp_path, 'for last; do :; done; echo broken > "$last"')}
    first, second = (_run("-m", "ttf.ops.native", **fresh) for _ in range(2))
    assert "compiling the operators" in first.stdout
    assert "compiling" not in second.stdout
    assert "cannot be loaded: delete it" in first.stdout + second.stdout
    if native.available():
        again = _run("-m", "ttf.ops.native")
        assert again.stdout == f"{build.library()}\n", again.stderr[-2000:]


def _run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], env={**os.environ, **environment}, capture_output=True, text=True, timeout=120
    )


@pytest.mark.slow
def test_without_a_compiler_the_command_and_a_model_go_on(tmp_path: Path) -> None:
    bare = {"XDG_CACHE_HOME": str(tmp_path), "PATH": "", "CXX": "nowhere"}
    made = _run("-m", "ttf.ops.native", **bare)
    assert made.returncode == 0
    assert "the plain operators will run" in made.stdout
    plain = _run("-c", COUNT, **bare)
    assert plain.stdout.startswith("False "), plain.stderr[-2000:]
    if native.available():
        fast = _run("-c", COUNT)
        assert fast.stdout == plain.stdout.replace("False", "True"), fast.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.skipif(not native.available(), reason="not compiled: python -m ttf.ops.native")
def test_a_damaged_library_is_not_fatal(tmp_path: Path) -> None:
    damaged = tmp_path / "ttf" / build.library().name
    damaged.parent.mkdir()
    damaged.write_bytes(b"\x7fELF of another machine")
    run = _run("-c", COUNT, XDG_CACHE_HOME=str(tmp_path))
    assert run.stdout.startswith("False "), run.stderr[-2000:]
    assert "cannot be loaded" in run.stderr
