"""Files around the code: citation, changelog, images, workflows; a release that something stands against."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
YAML = [".pre-commit-config.yaml", *(str(f.relative_to(ROOT)) for f in (ROOT / ".github").rglob("*.yml"))]


@pytest.fixture(scope="module")
def release():
    spec = importlib.util.spec_from_file_location("release", ROOT / ".ci" / "release.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_citation_names_the_paper_and_the_version(release):
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == release.version() and cited["authors"] == [{"name": "ttf contributors"}]
    paper = cited["preferred-citation"]
    assert [who["family-names"] for who in paper["authors"]] == ["Zeng", "Yu", "Kong", "Tang"]
    assert paper["url"].endswith("2506.05709")


def test_a_release_needs_version_changelog_and_citation_to_agree(release, tmp_path):
    for name in ("pyproject.toml", "CITATION.cff"):
        shutil.copy(ROOT / name, tmp_path)
    log = tmp_path / "CHANGELOG.md"
    log.write_text(f"## [Unreleased]\n\n## [{release.version()}] - 2026-01-01\n\nFirst.\n")
    assert release.disagreements(tmp_path) == []
    log.write_text(f"## [Unreleased]\n\n- more\n\n## [{release.version()}] - 2026-01-01\n")
    assert "entries under Unreleased" in release.disagreements(tmp_path)[0]
    log.write_text("## [0.0.1] - 2026-01-01\n")
    citation = tmp_path / "CITATION.cff"
    citation.write_text(citation.read_text().replace(f"\nversion: {release.version()}", "\nversion: 9.9.9"))
    assert [line.split()[0] for line in release.disagreements(tmp_path)] == ["CITATION.cff", "CHANGELOG.md"]


def test_the_image_is_built_as_images_should_be():
    text = (ROOT / "Dockerfile").read_text()
    steps = re.sub(r"\\\n", " ", re.sub(r"^#.*$", "", text, flags=re.M)).strip().splitlines()
    kinds = [step.split()[0] for step in steps if step.strip()]
    known = {"ARG", "FROM", "RUN", "WORKDIR", "COPY", "USER", "ENV", "EXPOSE", "ENTRYPOINT", "CMD"}
    assert kinds[:2] == ["ARG", "FROM"] and set(kinds) <= known and kinds.count("ENTRYPOINT") == 1
    (base,) = [step for step in steps if step.startswith("ARG BASE=")]
    assert ":" in base and "latest" not in base  # a tag that stays
    for step in (step for step in steps if "apt-get install" in step):
        assert "--no-install-recommends" in step and "rm -rf /var/lib/apt/lists" in step and "apt-get update" in step
    assert kinds.index("USER") < kinds.index("ENTRYPOINT")  # not as root
    assert all(json.loads(step.split(maxsplit=1)[1]) for step in steps if step.startswith(("ENTRYPOINT", "CMD")))
    copied = [path for step in steps if step.startswith("COPY") for path in step.split()[1:-1]]
    assert copied and all((ROOT / path).exists() for path in copied)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(re.search(r"ARG EXTRAS=(\S+)", text)[1].split(",")) <= set(extras)


def test_workflows_call_targets_and_commands_that_exist():
    targets = set(re.findall(r"^([a-z0-9_ -]+):", (ROOT / "Makefile").read_text(), re.M))
    targets = {target for line in targets for target in line.split()}
    for name in YAML:
        text = (ROOT / name).read_text()
        assert yaml.safe_load(text), name
        called = {word for line in re.findall(r"run: make ([a-z ]+)", text) for word in line.split()}
        assert called <= targets, name
    json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())


def test_oldest_packages_of_the_matrix_are_the_lower_bounds():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    every = [*project["dependencies"], *project["optional-dependencies"]["hf"]]
    least = dict(line.split(">=") for line in every if ">=" in line and "[" not in line)
    text = (ROOT / ".github" / "workflows" / "tests.yml").read_text()
    for name, pinned in re.findall(r"'(\w+)==([\d.]+?)(?:\.\*)?'", text):
        assert least[name] == pinned, name


def test_hooks_run_what_lint_runs():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    lint = (ROOT / "Makefile").read_text().split("\nlint:")[1].split("\n\n")[0]
    assert {hook["id"] for hook in hooks} == {"ruff", "ruff-format", "mypy", "report"}
    assert all(word in lint for word in ("ruff check", "ruff format", "mypy", "report.py compare=true"))


def test_release_says_what_stands_against_it():
    done = subprocess.run([sys.executable, ROOT / ".ci" / "release.py"], capture_output=True, text=True)
    if not (ROOT / ".git").exists():
        pytest.skip("needs the repository's git")
    assert done.returncode in (0, 1) and (done.stdout.startswith("ready: ") == (done.returncode == 0)), done
