"""Commands where the surroundings are odd, or something is missing and nothing can be fetched: they work, or say so."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.drilled import drilled

ROWS = f"paths.rows={Path(__file__).parents[2] / 'results' / 'rows'}"
FEW = ["eval", "limit=2", "throughput.batch_size=0"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an awkward name."""
    folder = tmp_path / "a b,c=d é"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    return folder


def test_odd_surroundings(here: Path, tmp_path: Path) -> None:
    logs = f"paths.logs={tmp_path}/logs"
    settings: dict[str, tuple[list[str], dict[str, Any]]] = {
        "no home, no entry": ([*FEW, "paths.logs=own"], {"without": ["HOME", "USER", "LOGNAME", "XDG_CACHE_HOME"]}),
        "letters of ASCII": ([*FEW, logs], {"codec": "ascii"}),
        "a clock set back": ([*FEW, f"paths.logs='{here}/quoted'"], {"clock": True}),
        "an unquoted path": ([*FEW, "paths.logs=a,b"], {}),
        "no folder": ([*FEW, logs], {"removed": True}),
    }
    found = dict(zip(settings, drilled(tmp_path, [(str(here), *one) for one in settings.values()]), strict=True))
    assert {name: code for name, (code, *_) in found.items() if code} == {"an unquoted path": 2, "no folder": 2}
    assert not [name for name, (*_, said) in found.items() if "Traceback" in said]
    assert found["an unquoted path"][2].startswith("error: paths.logs=a,b cannot be read as it is: write text with")
    assert found["no folder"][2] == "error: the working directory is gone: go to a folder that exists\n"
    for folder in (tmp_path / "logs", here / "own", here / "quoted"):  # rows are where paths say
        assert len([file for file in (folder / "runs").glob("*.json") if "." not in file.stem]) == 1, folder


def test_a_folder_that_cannot_be_written(here: Path, tmp_path: Path) -> None:
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(here)], capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        logs = f"paths.logs={tmp_path}/logs"
        cases: list[Any] = [(str(here), ["table", "table=table6", logs, f"paths.results={tmp_path}", ROWS], {})]
        cases += [(str(here), ["doctor"], {}), (str(here), [*FEW, "paths.logs=own"], {})]
        (code, _, _), (examined, _, found), (refused, _, said) = drilled(tmp_path, cases)
    finally:
        subprocess.run(["umount", "-l", str(here)], check=True)
    assert (code, examined) == (0, 0) and "Traceback" not in found
    assert refused == 2 and said.startswith("error: cannot ") and said.count("\n") == 1


@pytest.fixture
def imagenet(tmp_path: Path) -> str:
    """One photograph."""
    folder = tmp_path / "imagenet" / "val" / "n01440764"
    folder.mkdir(parents=True)
    Image.fromarray(np.zeros((40, 48, 3), dtype=np.uint8)).save(folder / "photograph.JPEG")
    return f"paths.imagenet={tmp_path}/imagenet"


def test_nothing_can_be_fetched(imagenet: str, tmp_path: Path) -> None:
    hub = "error: the weights of deit_small_patch16_224.fb_in1k could not be downloaded"
    wanted = {
        f"eval model=deit_s {imagenet}": hub,
        f"eval model=deit_s paths.weights={tmp_path}/none {imagenet}": hub,
        f"eval model=lv_vit_s {imagenet}": "error: https://github.com/zihangJiang/TokenLabeling/releases/",
        f"visualize model=deit_s {imagenet}": hub,
        f"eval model=deit_s paths.imagenet={tmp_path}/none": f"error: no ImageNet at {tmp_path}/none/val: set paths.im",
        f"eval model=hf network.name={tmp_path}/none {imagenet}": f"error: {tmp_path}/none could not be loaded",
    }
    offline = {
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HOME": str(tmp_path / "hub"),
        "https_proxy": "http://127.0.0.1:9",
    }
    logs = f"paths.logs={tmp_path}/logs"
    cases: list[Any] = [(str(tmp_path), [*given.split(), logs], {}) for given in wanted]
    for (given, line), (code, seconds, said) in zip(wanted.items(), drilled(tmp_path, cases, **offline), strict=True):
        assert code == 2 and said.startswith(line) and said.count("\n") == 1, (given, said)
        assert ("which does not exist" in said) == ("paths.weights" in given)
        assert seconds < 30, given  # 5 on an idle machine
