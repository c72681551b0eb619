"""What README.md tells to type is typed here, at small scale and without downloads."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.scripts_under_test import ROOT, script

TEXT = (ROOT / "README.md").read_text()
COMMANDS = [line.split("#")[0].split() for line in re.findall(r"^ttf .*$", TEXT, re.M)]
FEW = ["limit=8", "throughput.batch_size=0"]
SMALL = {
    "eval": FEW,
    "visualize": ["figure={folder}/figure.png"],
    "benchmark": ["rounds=5", "csv={folder}/speed.csv", "batch=[1,2]"],
    "finetune": [
        "train.steps=2",
        "train.batch_size=4",
        "data.train.length=16",
        "data.test.length=16",
        "train.workers=0",
    ],
    "table": ["paths.rows=results/rows"],
    "doctor": [],
}


def _small(command: list[str], folder: Path) -> list[str]:
    """The arguments with a model that is here, without data that is not, and few images."""
    own = [word.replace("model=deit_s", "model=vit_mini") for word in command[2:]]
    added = [word.format(folder=folder) for word in SMALL[command[1]]]
    replaced = {word.split("=")[0] for word in added}
    kept = [word for word in own if not word.startswith("paths.") and word.split("=")[0] not in replaced]
    return [*kept, *added, f"paths.logs={folder}/logs", f"paths.results={folder}/results"]


def test_there_are_commands_of_every_kind():
    assert {command[1] for command in COMMANDS} == set(SMALL) and len(COMMANDS) >= 9


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command[1:])[:60])
def test_a_command_runs(command, tmp_path):
    done = script(command[1], *_small(command, tmp_path), COLUMNS="200")
    assert done.returncode == 0, (done.stdout[-500:], done.stderr[-1500:])


def test_the_python_lines_run(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    exec(code.replace("pretrained=True", "pretrained=False, img_size=64").replace("224, 224", "64, 64"), {})
    assert 0 < float(capsys.readouterr().out) < 1


def test_make_targets_exist():
    targets = {
        name for line in re.findall(r"^([a-z0-9_ -]+):", (ROOT / "Makefile").read_text(), re.M) for name in line.split()
    }
    assert set(re.findall(r"`?make ([a-z]+)", TEXT)) <= targets


def test_links_lead_to_files():
    for name in re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", TEXT):
        assert (ROOT / name).exists(), name
