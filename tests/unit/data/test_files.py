"""What is written replaces nothing that is not ours."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.scripts_under_test import script
from ttf.data.files import check_replaceable
from ttf.report.figures import check_figure
from ttf.results.costs import check_file
from ttf.results.store import is_row, write_json

FOREIGN: dict[str, tuple[Callable[[Path], object], str]] = {
    "a folder": (Path.mkdir, "a folder"),
    "a link": (lambda path: path.symlink_to(path.with_name("target")), "a link"),
    "a pipe": (os.mkfifo, "a pipe"),
    "a socket": (lambda path: socket.socket(socket.AF_UNIX).bind(str(path)), "a socket"),
    "notes": (lambda path: path.write_text("my notes"), "a file, but not a row of results"),
    "other JSON": (lambda path: path.write_text('{"a": 1}'), "a file, but not a row of results"),
    "an empty file": (Path.touch, "a file, but not a row of results"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_row_replaces_rows_alone(kind: str, tmp_path: Path) -> None:
    make, said = FOREIGN[kind]
    path = tmp_path / "row.json"
    make(path)
    before = path.lstat()
    with pytest.raises(ValueError, match=rf"row\.json is {said}, and is not replaced: choose another name"):
        check_replaceable(path, is_row, "a row of results")
    assert path.lstat().st_ino == before.st_ino


def test_a_row_replaces_a_row(tmp_path: Path) -> None:
    check_replaceable(tmp_path / "row.json", is_row, "a row of results")
    write_json(tmp_path / "row.json", {"id": "a", "config": {}, "value": float("nan")})
    assert "NaN" not in (tmp_path / "row.json").read_text()
    check_replaceable(tmp_path / "row.json", is_row, "a row of results")


def test_costs_and_their_table(tmp_path: Path) -> None:
    path = tmp_path / "costs.csv"
    check_file(path)
    path.write_text("model,batch,gmacs\nvit,1,2\n")
    path.with_suffix(".md").write_text("**title**\n")
    check_file(path)
    path.with_suffix(".md").write_text("# My notes\n")
    with pytest.raises(ValueError, match=r"costs\.md is a file, but not a table of costs"):
        check_file(path)
    path.write_text("name,price\ntea,3\n")
    with pytest.raises(ValueError, match=r"costs\.csv is a file, but not a table of costs"):
        check_file(path)
    with pytest.raises(ValueError, match=r"must end in \.csv"):
        check_file(tmp_path / "costs.json")


def test_figures(tmp_path: Path) -> None:
    check_figure(tmp_path / "new.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "photo.png")
    with pytest.raises(ValueError, match=r"photo\.png is a file, but not a figure"):
        check_figure(tmp_path / "photo.png")


@pytest.mark.parametrize("told", ["eval out=FILE limit=2", "benchmark csv=FILE", "visualize figure=FILE"])
def test_it_is_said_before_anything_is_measured(told: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.csv"
    file.write_text("name,price\ntea,3\n")
    name, *overrides = told.replace("FILE", str(file)).split()
    done = script(name, *overrides, f"paths.logs={tmp_path / 'logs'}")
    assert done.returncode == 2 and not done.stdout
    (line,) = done.stderr.splitlines()
    assert "mine.csv is a file, but not a" in line and file.read_text() == "name,price\ntea,3\n"
