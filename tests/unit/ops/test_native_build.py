"""Compiling the operators: where to, with what, what is said where it cannot be done, and what is never loaded."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.scripts_under_test import fresh
from ttf.ops import native
from ttf.ops.native import build

COUNT = """
import ttf
from ttf.models.vit_mini import vit_mini
from ttf.measure import gmacs
from ttf.ops import native
model = vit_mini().eval()
ttf.apply(model, ratio=0.5)
print(native.loaded(), gmacs(model, (3, *model.patch_embed.img_size)))
"""
LOADED = "from ttf.ops import native; print(native.loaded())"
OWN = build.library() if native.loaded() else None
compiled = pytest.mark.skipif(not native.loaded(), reason="not compiled: python -m ttf.ops.native")


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache without the operators."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "ttf"


@pytest.fixture
def copied(empty: Path) -> Path:
    """A cache with a copy of this machine's own."""
    assert OWN is not None
    empty.mkdir(mode=0o700)
    path = empty / OWN.name
    path.write_bytes(OWN.read_bytes())
    path.chmod(0o700)
    return path


def _compiler(folder: Path, script: str) -> str:
    path = folder / "compiler"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_no_compiler_is_said(empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ValueError, match=r"install g\+\+ or name one in CXX"):
        build.build()


def test_what_the_compiler_says_is_shown(empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", _compiler(tmp_path, "echo no such header >&2; exit 3"))
    with pytest.raises(ValueError, match="no such header"):
        build.build()
    assert not list(empty.iterdir())


WRITES = 'for last; do :; done; echo "$@" > "$last"'


def test_the_compiler_of_the_environment_is_taken_and_its_file_put_in_place(
    empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", _compiler(tmp_path, WRITES))
    path = build.build()
    assert str(build.SOURCE).encode() in path.read_bytes()
    assert [file.name for file in empty.iterdir()] == [path.name]
    monkeypatch.setenv("CXX", _compiler(tmp_path, "exit 1"))
    assert build.build() == path  # it is there already


def test_folder_and_library_are_this_users_alone(empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", _compiler(tmp_path, WRITES))
    before = os.umask(0o002)  # as many systems have it: the group may write
    try:
        path = build.build()
    finally:
        os.umask(before)
    assert [file.stat().st_mode & 0o777 for file in (empty, path)] == [0o700, 0o700]
    build.check(path)


@pytest.mark.parametrize("which", ["folder", "file"])
@pytest.mark.parametrize("mode", [0o720, 0o702])
def test_what_others_may_write_to_is_refused(
    which: str, mode: int, empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", _compiler(tmp_path, WRITES))
    path = build.build()
    (empty if which == "folder" else path).chmod(mode)
    for refused in (lambda: build.check(path), build.build):
        with pytest.raises(ValueError, match=r"can be written by others: delete it, then python -m ttf\.ops\.native"):
            refused()


def test_what_belongs_to_another_user_is_refused(empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", _compiler(tmp_path, WRITES))
    path = build.build()
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    for refused in (lambda: build.check(path), build.build):
        with pytest.raises(ValueError, match="belongs to another user"):
            refused()


@pytest.mark.parametrize("damage", ["cut", "changed", "foreign", "empty"])
def test_a_damaged_library_is_refused_and_compiled_again(
    damage: str, empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", _compiler(tmp_path, WRITES))
    path = build.build()
    good = path.read_bytes()
    path.write_bytes({"cut": good[:-5], "changed": b"x" + good[1:], "foreign": b"\x7fELF" * 99, "empty": b""}[damage])
    with pytest.raises(ValueError, match="is damaged: python -m ttf.ops.native"):
        build.check(path)
    build.build()
    build.check(path)


def test_processes_may_build_at_once(empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", _compiler(tmp_path, f"sleep 0.2; {WRITES}"))
    with ThreadPoolExecutor(4) as pool:
        paths = {future.result() for future in [pool.submit(build.build) for _ in range(4)]}
    assert len(paths) == 1 and len(list(empty.iterdir())) == 1
    build.check(paths.pop())


def test_the_library_is_for_this_source_torch_and_processor(monkeypatch: pytest.MonkeyPatch, empty: Path) -> None:
    names = {build.file_name.__wrapped__()}
    assert build.library().parent == empty
    monkeypatch.setattr(build, "TEXTS", build.TEXTS[:-1])  # of the headers, too
    names.add(build.file_name.__wrapped__())
    monkeypatch.setattr(build, "_flags", lambda: ("-mother",))
    names.add(build.file_name.__wrapped__())
    monkeypatch.setattr(build.torch, "__version__", "2.0")
    names.add(build.file_name.__wrapped__())
    assert len(names) == 4


@pytest.mark.parametrize("named", ["", "relative/folder", "~/cache", None])
def test_a_cache_that_is_no_absolute_path_is_ignored(
    named: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if named is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", named)
    assert build.cache_folder() == tmp_path / ".cache" / "ttf"


def _unknown(*_: Any) -> Any:
    raise KeyError("getpwuid(): uid not found: 4711")


def test_without_a_home_there_is_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    import pwd

    monkeypatch.setattr(pwd, "getpwuid", _unknown)
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match="set HOME or XDG_CACHE_HOME"):
        build.library()
    monkeypatch.setattr(native, "_loaded", False)
    assert not native.load()


def test_a_cache_that_cannot_be_read_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(native, "_loaded", False)
    monkeypatch.setattr(Path, "exists", refused)
    with pytest.warns(UserWarning, match="the plain operators run.*Permission denied"):
        assert not native.load()


def test_a_cache_that_is_a_file_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for cache in (tmp_path / "file", tmp_path / "file" / "below"):
        run = fresh("-c", LOADED, XDG_CACHE_HOME=str(cache))
        assert run.stdout == "False\n", run.stderr[-2000:]
        made = fresh("-m", "ttf.ops.native", XDG_CACHE_HOME=str(cache))
        assert made.returncode == 0 and "the plain operators will run" in made.stdout, made.stderr[-2000:]


NOBODY = """
import pwd
def unknown(number): raise KeyError(number)
pwd.getpwuid = unknown
"""


def test_import_and_command_work_without_a_home() -> None:
    bare: dict[str, str | None] = {"HOME": None, "XDG_CACHE_HOME": None}
    run = fresh("-c", NOBODY + LOADED, **bare)
    assert run.stdout == "False\n" and "cannot be loaded" not in run.stderr, run.stderr[-2000:]
    made = fresh("-c", NOBODY + "import runpy; runpy.run_module('ttf.ops.native', run_name='__main__')", **bare)
    assert "the plain operators will run" in made.stdout and "set HOME" in made.stdout, made.stderr[-2000:]


def test_the_command_builds_once_and_says_where(tmp_path: Path) -> None:
    broken = _compiler(tmp_path, 'for last; do :; done; echo broken > "$last"')
    first, second = (fresh("-m", "ttf.ops.native", XDG_CACHE_HOME=str(tmp_path), CXX=broken) for _ in range(2))
    assert "compiling the operators" in first.stdout
    assert "cannot be loaded: delete it" in first.stdout + second.stdout
    if native.loaded():
        again = fresh("-m", "ttf.ops.native")
        assert again.stdout == f"{build.library()}\n", again.stderr[-2000:]


def test_switched_off_the_command_leaves_the_cache_alone(empty: Path) -> None:
    made = fresh("-m", "ttf.ops.native", TTF_NATIVE="0")
    assert made.returncode == 0 and "TTF_NATIVE is off" in made.stdout
    assert not empty.exists()


@pytest.mark.slow
def test_without_a_compiler_the_command_and_a_model_go_on(tmp_path: Path) -> None:
    bare = {"XDG_CACHE_HOME": str(tmp_path), "PATH": "", "CXX": "nowhere"}
    made = fresh("-m", "ttf.ops.native", **bare)
    assert made.returncode == 0
    assert "the plain operators will run" in made.stdout
    plain = fresh("-c", COUNT, **bare)
    assert plain.stdout.startswith("False "), plain.stderr[-2000:]
    if native.loaded():
        fast = fresh("-c", COUNT)
        assert fast.stdout == plain.stdout.replace("False", "True"), fast.stderr[-2000:]


@compiled
def test_a_library_as_it_was_compiled_is_loaded(copied: Path) -> None:
    run = fresh("-c", LOADED)
    assert run.stdout == "True\n" and not run.stderr, run.stderr[-2000:]


@compiled
@pytest.mark.parametrize("damage", ["cut", "zeroed", "foreign", "sealed", "shared", "folder"])
def test_another_library_is_never_fatal(damage: str, copied: Path) -> None:
    content = copied.read_bytes()
    if damage == "shared":
        copied.chmod(0o777)
    elif damage == "folder":
        copied.unlink()
        copied.mkdir()
    else:
        half = len(content) // 2
        foreign = b"\x7fELF of another machine"
        kinds = {"cut": content[:half], "zeroed": content[:half] + bytes(len(content) - half), "foreign": foreign}
        copied.write_bytes(kinds.get(damage, foreign + build._digest(foreign)))
    run = fresh("-c", LOADED)
    assert run.returncode == 0 and run.stdout == "False\n", run.stderr[-2000:]
    assert "the plain operators run" in run.stderr
