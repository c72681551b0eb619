"""The compiled operators under the compiler's checks of addresses and of undefined behaviour."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ttf.ops.native import build

CHECKS = ("-O1", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
ROOT = Path(__file__).parents[3]


def _runtimes(cxx: str) -> list[str]:
    """Libraries that have to be there before Python is; the second, or an exception finds no way out of the first."""
    found = []
    for name in ("libasan.so", "libstdc++.so"):
        path = subprocess.run([cxx, f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
        if not Path(path).is_absolute():
            pytest.skip(f"{cxx} has no {name}: install libasan")
        found.append(str(Path(path).resolve()))
    return found


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The operators with checks, and what they need."""
    cxx = build.compiler()
    if cxx is None:
        pytest.skip("no C++ compiler")
    runtimes, library = _runtimes(cxx), tmp_path_factory.mktemp("checked") / "operators.so"
    run = subprocess.run(build.command(cxx, library, CHECKS), capture_output=True, text=True)
    if run.returncode:
        pytest.skip(f"{cxx} cannot compile with {CHECKS[-2]}: {run.stderr[-300:]}")
    return library, runtimes


@pytest.mark.slow
def test_nothing_is_read_or_written_outside(checked: tuple[Path, list[str]]) -> None:
    library, runtimes = checked
    checks = {"LD_PRELOAD": " ".join(runtimes), "ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}
    environment = {**os.environ, **checks, "TTF_NATIVE": "0"}
    command = [sys.executable, "-m", "tests.unit.ops.native_worker", str(library)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, cwd=ROOT)
    said = run.stdout + run.stderr
    assert run.returncode == 0 and "Sanitizer" not in said and "runtime error" not in said, said[-4000:]
    assert [line.split()[1] for line in run.stdout.splitlines()] == ["True", "True"]
