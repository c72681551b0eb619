"""The project's own rules."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from ttf.config_store import entries, files, model, options
from ttf.experiments import register

ROOT = Path(__file__).parents[2]


def _names(requirements: list[str]) -> set[str]:
    return {re.split(r"[<>=\[ ]", line)[0] for line in requirements}


def test_conda_installs_the_packages_of_pyproject():
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    lines = (ROOT / "environment.yml").read_text().splitlines()
    assert _names(wanted) <= _names([line.strip(" -") for line in lines])


def test_every_make_target_is_explained():
    text = (ROOT / "Makefile").read_text()
    rules = re.findall(r"^([a-z0-9_ -]+):(?![:=])(?:.*## (.+))?", text, re.M)
    targets = {name for names, _ in rules for name in names.split()}
    assert targets == {name for names, said in rules if said for name in names.split()}
    shown = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert [line.split() for line in shown.splitlines()] == [f"make {n} {said}".split() for n, said in rules if said]
    assert {"help", "setup", "demo", "test", "lint", "doctor"} <= targets


def test_operators_import_torch_alone():
    standard = ("__future__", "collections.abc", "dataclasses", "abc", "typing", "math", "itertools")
    for file in (ROOT / "ttf" / "ops").rglob("*.py"):
        imports = re.findall(r"^\s*(?:from|import) (\S+)", file.read_text(), re.M)
        kept = ("hashlib", "json", "logging", "pathlib", "tempfile", "warnings")  # by trust.py, in the user's cache
        kernels = ("triton", "importlib", "os", "contextlib", *kept) if file.parent.name == "kernels" else ()
        builds = ["os", "warnings", "functools", "hashlib", "shutil", "stat", "subprocess", "tempfile", "pathlib"]
        native = builds if file.parent.name == "native" else ()
        allowed = ("torch", "ttf.ops", *standard, *kernels, *native)
        assert not [name for name in imports if not name.startswith(allowed)], file


def _imports(file: Path) -> list[str]:
    return re.findall(r"^\s*(?:from|import) (\S+)", file.read_text(), re.M)


@pytest.mark.parametrize(
    ("folder", "never"),
    [
        ("metrics", ("ttf.tasks", "ttf.results", "ttf.report", "ttf.data", "ttf.models", "timm", "omegaconf")),
        ("results", ("ttf.tasks", "ttf.report", "ttf.bench", "ttf.models", "ttf.training")),
        ("report", ("ttf.tasks", "ttf.bench", "ttf.models", "ttf.training")),
    ],
)
def test_arrows_between_rooms(folder, never):
    files = list((ROOT / "ttf" / folder).rglob("*.py"))
    found = {file.name: [name for name in _imports(file) if name.startswith(never)] for file in files}
    assert files and not {name: imports for name, imports in found.items() if imports}


def test_metrics_import_torch_and_scipy_alone():
    allowed = (
        "torch",
        "scipy",
        "ttf.metrics",
        "__future__",
        "collections",
        "dataclasses",
        "typing",
        "math",
        "hashlib",
        "re",
    )
    found = {name for file in (ROOT / "ttf" / "metrics").glob("*.py") for name in _imports(file)}
    assert not {name for name in found if not name.startswith(allowed)} - {"pkgutil", "importlib", "functools"}


def test_folders_of_unit_tests_are_rooms_of_the_library():
    rooms = {folder.name for folder in (ROOT / "tests" / "unit").iterdir() if list(folder.glob("test_*.py"))}
    assert rooms and not {room for room in rooms if not (ROOT / "ttf" / room / "__init__.py").is_file()}


def test_no_file_is_longer_than_350_lines():
    kinds = [f"*.{suffix}" for suffix in ("py", "md", "yaml", "yml", "toml", "js", "css", "cpp", "h")]
    listed = ["git", "ls-files", *kinds, ":!results"]  # tables there are as long as their rows
    tracked = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True).stdout.split()
    files = [ROOT / name for name in tracked] or list((ROOT / "ttf").rglob("*.py"))
    assert not [file.name for file in files if file.is_file() and len(file.read_text().splitlines()) > 350]


def test_no_library_code_imports_mocks():
    assert not [file for file in (ROOT / "ttf").rglob("*.py") if "unittest" in file.read_text()]


@pytest.mark.parametrize("name", sorted(entries("trainings")))
def test_every_training_composes(name):
    from hydra import compose, initialize_config_dir

    register([name])
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        measured = entries("trainings")[name].get("row", name)  # a training of a row has its name
        assert compose("finetune", [f"experiment={name}"]).name == measured
    text = "".join(file.read_text() for file in files("trainings"))
    assert f"experiment={name}" in text  # the command stands above it


def test_options_without_a_file_of_their_own():
    """Numbers in the files are numbers (1e-3 would be a text), names are unique, and each is known by its name."""
    for name in ("models", "methods", "trainings"):
        text = "\n".join(file.read_text() for file in files(name))
        texts = re.findall(r"(?m)^(\w[\w./]*):", text)
        assert len(texts) == len(set(texts)) == len(entries(name))
        assert not re.search(r": [0-9]+e", text)
    assert {"deit_s", "segmenter_l", "vit_mini"} <= set(options("model")) and "evit" in options("method")
    with pytest.raises(ValueError, match="there is no model=deit_x: choose one of"):
        model("deit_x")
    assert len(list((ROOT / "configs").rglob("*.yaml"))) <= 90


def test_no_merge_was_left_halfway():
    marks = ["git", "grep", "-lE", "^(<{7}|>{7}) ", "--", ".", ":!tests/unit/test_project.py"]
    found = subprocess.run(marks, cwd=ROOT, capture_output=True, text=True)
    if found.returncode > 1:
        pytest.skip("no repository of git here")
    assert found.stdout.split() == []
