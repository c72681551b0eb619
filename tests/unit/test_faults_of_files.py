"""Images that cannot be read, places that must not be written to, files that were changed: through the command line."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.drilled import Outcome, drilled, once

FEW = "eval limit=4 throughput.batch_size=0"
IMAGES = "eval limit=20 throughput.batch_size=0 task.dataset=imagenet"
FINETUNE = "finetune experiment=mini/finetune train.steps=1 output=ft"
PHOTOGRAPH = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8))
BAD: dict[str, Callable[[Path], object]] = {
    "cut.jpg": lambda path: path.write_bytes(_jpeg(path)[:-200]),
    "empty.jpg": Path.touch,
    "text.png": lambda path: path.write_text("hello"),
    "._apple.jpg": lambda path: path.write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X        "),
    "gone.jpg": lambda path: path.symlink_to("nowhere"),
    "pipe.jpg": os.mkfifo,
    "folder.png": Path.mkdir,
    "wide.png": lambda path: Image.new("RGB", (20000, 1)).save(path),
}
GOOD: dict[str, Callable[[Path], object]] = {
    "good.JPEG": lambda path: PHOTOGRAPH.save(path, format="JPEG"),
    "exif.jpg": lambda path: PHOTOGRAPH.save(path, exif=b"Exif\0\0II*\0\xff\xff\xff\xff"),
    "profile.png": lambda path: PHOTOGRAPH.save(path, icc_profile=b"nonsense" * 50),
    "grey.png": lambda path: PHOTOGRAPH.convert("LA").save(path),
}


def _jpeg(path: Path) -> bytes:
    PHOTOGRAPH.save(path)
    return path.read_bytes()


def _edit(pattern: str, change: str) -> str:
    """Code that changes files of a folder: ``change`` is an expression of their bytes b."""
    return (
        f"import pathlib\nfor p in pathlib.Path().glob({pattern!r}):\n    b = p.read_bytes(); p.write_bytes({change})"
    )


WRITING = {  # what the command is, what is done before, what is said
    "a device": (f"{FEW} out=/dev/null", "", "/dev/null is a device, and is not replaced: choose another name"),
    "a folder": (f"{FEW} out=logs", "", "logs is a folder, and is not replaced"),
    "a link": (f"{FEW} out=l.json", "os.symlink('row.json', 'l.json')", "l.json is a link, and is not replaced"),
    "a pipe": (f"{FEW} out=p.json", "os.mkfifo('p.json')", "p.json is a pipe, and is not replaced"),
    "notes": (f"{FEW} out=n.json", "open('n.json', 'w').write('mine')", "n.json is a file, but not a row of results"),
    "notes beside a table": (
        "benchmark batch=[1] csv=c.csv",
        "open('c.md', 'w').write('# mine')",
        "c.md is a file, but not a table of costs, and is not replaced: choose another name",
    ),
    "a training of others": (
        FINETUNE,
        "os.mkdir('ft'); open('ft/log.csv', 'w').write('my,log')",
        "ft has a log.csv, and not of a training, which would replace it: choose another output=FOLDER",
    ),
}
CHANGED = {
    "a training whose identity is cut": (
        FINETUNE.replace("=ft", "=own"),
        "os.makedirs('own/state'); open('own/state/identity.json', 'w').write('{')",
        "own/state/identity.json is damaged, so nothing says whose run this is: remove own/state to start again",
    ),
    "a schedule with code": (
        f"{FEW} schedule=searched schedule.file=s.yaml",
        "open('s.yaml', 'w').write('!!python/object/apply:os.system [exit]')",
        "cannot read the schedule s.yaml (could not determine a constructor for the tag ",
    ),
    "costs that are cut": (
        "benchmark batch=[1] csv=d.csv",
        "open('d.csv', 'w').write('model,batch,method,speed_up\\nvit_mini,1,none,1.0\\nvit_mini,1')",
        "d.csv line 3 was cut off or changed: take it from the repository again, or remove it to time again",
    ),
    "costs with a word": (
        "benchmark batch=[1] csv=e.csv",
        "open('e.csv', 'w').write('model,batch,method,speed_up\\nvit_mini,one,none,1.0\\n')",
        "e.csv line 2 was cut off or changed",
    ),
    "costs without a column": (
        "benchmark batch=[1] csv=f.csv",
        "open('f.csv', 'w').write('model,gmacs\\nvit_mini,1\\n')",
        "f.csv has no column batch: take it from the repository again, or remove it to time again",
    ),
}
MADE_ANEW = {
    "a row": (
        "logs/runs/????????????.json",
        "b.replace(b'0', b'1')",
        "left out: ",
        " was changed after it was written",
    ),
    "its outcomes": ("logs/runs/*.images.safetensors", "b[:-9]", "made anew: ", ".images.safetensors cannot be read ("),
    "predictions": ("logs/cache/base-*.safetensors", "b[:50] + b[50:].replace(b'\\0', b'1')", "made anew: ", "base-"),
}


def _cases() -> dict[str, tuple[str, str]]:
    """Commands, and code that is run before them, in the order in which they are given."""
    cases = {"images, skipped": (f"{IMAGES} on_bad_image=skip", ""), "images, stopped": (IMAGES, "")}
    cases["images, by workers"] = (f"{IMAGES} workers=2", "")
    cases |= {name: (given, first) for name, (given, first, _) in (WRITING | CHANGED).items()}
    cases["measured"] = (f"{FEW} out=row.json", "")
    for name, (pattern, change, *_) in MADE_ANEW.items():
        cases[name] = (f"{FEW} force={str(name == 'predictions').lower()}", _edit(pattern, change))
    return cases


def _made(folder: Path) -> dict[str, Outcome]:
    photographs = folder / "imagenet" / "val" / "n01440764"
    photographs.mkdir(parents=True)
    for name, make in (BAD | GOOD).items():
        make(photographs / name)
    places = ["paths.logs=logs", f"paths.imagenet={folder}/imagenet"]
    given: list[Any] = [(str(folder), [*told.split(), *places], {"first": f}) for told, f in _cases().values()]
    return dict(zip(_cases(), drilled(folder, given), strict=True))


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    return once(tmp_path_factory, "faults_of_files", lambda: _made(tmp_path_factory.mktemp("files")))


def test_bad_images_are_named_and_left_out(outcomes: dict[str, Outcome]) -> None:
    code, _, said = outcomes["images, skipped"]
    assert code == 0 and "Warning" not in said, said
    assert all(name in said for name in BAD) and not any(name in said for name in GOOD)


@pytest.mark.parametrize("how", ["images, stopped", "images, by workers"])
def test_a_bad_image_stops(how: str, outcomes: dict[str, Outcome]) -> None:
    code, _, said = outcomes[how]
    line = said.splitlines()[-1]
    assert code == 2 and line.startswith("error: ") and "Traceback" not in said, said
    assert any(f"/{name} cannot be read (" in line for name in BAD) and line.endswith("or set on_bad_image=skip")


@pytest.mark.parametrize("name", [*WRITING, *CHANGED])
def test_files_that_are_refused(name: str, outcomes: dict[str, Outcome]) -> None:
    code, _, said = outcomes[name]
    assert code == 2 and said.startswith("error: ") and said.count("\n") == 1, said
    assert (WRITING | CHANGED)[name][2] in said


@pytest.mark.parametrize("name", MADE_ANEW)
def test_files_that_are_made_anew(name: str, outcomes: dict[str, Outcome]) -> None:
    code, _, said = outcomes[name]
    *_, begin, middle = MADE_ANEW[name]
    assert code == 0 and any(line.startswith(begin) and middle in line for line in said.splitlines()), said
    assert outcomes["measured"][0] == 0 and "made anew" not in outcomes["measured"][2]
