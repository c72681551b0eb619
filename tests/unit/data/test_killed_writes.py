"""kill -9 at any step of writing a file: it is the older one or the new one, and the next writing leaves no other."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ttf.data import files
from ttf.data.files import atomic_write
from ttf.report.documents import rewrite
from ttf.report.numbers import Numbers

STEPS = ("mkdtemp", "chmod", "replace", "rmtree")
DOCUMENTS = ("README.md", "docs/a.md", "docs/b.md")


def _killed(call: Callable[[], object], module: str, step: str, times: int = 1, after: bool = False) -> int:
    """Call in a process that is killed when it takes a step for the n-th time; gives how it ended."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    owner = getattr(files, module)
    real, left = getattr(owner, step), [times]

    def die(*given: object, **more: object) -> object:
        left[0] -= 1
        done = real(*given, **more) if after or left[0] else None
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return done

    setattr(owner, step, die)
    call()
    os._exit(0)


def _of(step: str) -> str:
    return {"mkdtemp": "tempfile", "rmtree": "shutil"}.get(step, "os")


def _listed(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", STEPS)
def test_a_file_is_whole_and_what_was_left_goes(step: str, after: bool, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    old, new = ({"a": torch.full((2000,), value)} for value in (1.0, 2.0))
    atomic_write(path, lambda temporary: save_file(old, temporary))
    before = path.read_bytes()
    assert _killed(lambda: atomic_write(path, lambda t: save_file(new, t)), _of(step), step, after=after) == -9
    written = path.read_bytes() != before
    assert written == (step == "rmtree" or (step == "replace" and after))
    assert all(name.startswith(".w.safetensors.") and ".partial" in name for name in _listed(tmp_path)[:-1])
    atomic_write(path, lambda temporary: save_file(new, temporary))
    assert [file.name for file in tmp_path.iterdir()] == ["w.safetensors"]


def test_what_another_process_is_writing_stays(tmp_path: Path) -> None:
    path = tmp_path / "x.json"

    def write(temporary: Path) -> None:
        temporary.write_text("first")
        atomic_write(path, lambda other: other.write_text("second"))
        assert path.read_text() == "second"

    atomic_write(path, write)
    assert path.read_text() == "first" and _listed(tmp_path) == ["x.json"]


def test_files_of_others_stay(tmp_path: Path) -> None:
    others = [".x.json.swp", ".x.json.12345678.part", ".x.json.bak.12345678.partial", ".x.json.1234567.partial"]
    for name in others:
        (tmp_path / name).touch()
    atomic_write(tmp_path / "x.json", Path.touch)
    assert _listed(tmp_path) == sorted([*others, "x.json"])


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A repository with documents whose numbers are old."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "costs").mkdir()
    (tmp_path / "costs" / "c.csv").write_text("model,gmacs\nvit,1.5\n")
    (tmp_path / "docs" / "report.yaml").write_text("{}\n")
    for name in DOCUMENTS:
        (tmp_path / name).write_text("It is <!--= c.csv gmacs model=vit -->9.9<!--/-->.\n" * 300)
    (tmp_path / ".gitignore").write_text((Path(__file__).parents[3] / ".gitignore").read_text())
    for command in ("init -q", "add README.md docs costs .gitignore"):
        subprocess.run(["git", "-C", str(tmp_path), *command.split()], check=True)
    return tmp_path


def _status(project: Path) -> list[str]:
    done = subprocess.run(["git", "-C", str(project), "status", "--porcelain"], capture_output=True, text=True)
    return sorted(line for line in done.stdout.splitlines() if line.startswith("??"))


@pytest.mark.parametrize("step", ["mkdtemp", "chmod", "replace"])
def test_a_report_that_is_killed(step: str, project: Path) -> None:
    old = {name: (project / name).read_text() for name in DOCUMENTS}
    new = {name: text.replace("9.9", "1.5") for name, text in old.items()}
    numbers = Numbers([], project / "costs", project)
    for times in range(1, len(DOCUMENTS) + 1):
        for name, text in old.items():
            (project / name).write_text(text)
        assert _killed(lambda: rewrite(project, numbers), _of(step), step, times, after=True) == -9
        written = [name for name in DOCUMENTS if (project / name).read_text() == new[name]]
        assert written == list(DOCUMENTS[: times - (step != "replace")])
        assert all((project / name).read_text() == old[name] for name in DOCUMENTS if name not in written)
        assert not _status(project)
        assert rewrite(project, numbers) == [Path(name).name for name in DOCUMENTS if name not in written]
        assert all((project / name).read_text() == new[name] for name in DOCUMENTS)
