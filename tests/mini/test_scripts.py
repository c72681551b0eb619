"""The scripts as a user calls them, in processes of their own."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.scripts_under_test import Done, Script, python
from tests.scripts_under_test import script as forked

QUICK = ["limit=16", "throughput.batch_size=0"]
PNG = b"\x89PNG"


def places(folder: Path) -> list[str]:
    """Rows, caches, tables and figures of its own."""
    return [f"paths.logs={folder}/logs", f"paths.runs={folder}/runs", f"paths.results={folder}"]


def script(name: str, folder: Path, *overrides: str, **environment: str) -> Done:
    return forked(name, *overrides, *places(folder), **environment)


def rows(folder: Path) -> list[Path]:
    return [f for f in (folder / "runs").glob("*.json") if "." not in f.stem]


def test_one_row_with_out(tmp_path):
    out = tmp_path / "row.json"
    done = python("scripts/eval.py", *QUICK, "ratio=0.6", f"out={out}", *places(tmp_path))  # imports all it needs
    assert done.returncode == 0, done.stderr
    assert "speed" not in done.stdout and "GMACs" in done.stdout
    row = json.loads(out.read_text())
    assert row == json.loads(rows(tmp_path)[0].read_text())
    assert row["command"] == "ttf eval limit=16 throughput.batch_size=0 ratio=0.6"


def test_user_mistakes_end_with_one_line(tmp_path):
    done = script("eval", tmp_path, *QUICK, "ratio=2")
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: ratio is the share")
    assert "Traceback" not in done.stderr


def test_an_unknown_model_lists_the_known_ones(tmp_path):
    done = script("eval", tmp_path, "model=resnet")
    assert done.returncode == 2
    assert "vit_ti_augreg" in done.stderr
    assert "Traceback" not in done.stderr


def test_sweep_goes_on_after_a_failure(tmp_path):
    done = script("eval", tmp_path, "-m", *QUICK, "kappa=0.3,7,0.5,-8", "tau=150")
    assert done.returncode == 2
    assert [line for line in done.stderr.splitlines() if not line.endswith("again)")] == [
        "error: kappa is the gate threshold (Eq. 3), in [-1, 1], got 7 (of the run kappa=7)",
        "error: kappa is the gate threshold (Eq. 3), in [-1, 1], got -8 (of the run kappa=-8)",
        "error: 2 of 4 runs failed, see above; what the others wrote is kept",
    ]
    assert len(rows(tmp_path)) == 2


def test_a_traceback_of_several_runs_is_shown_on_request(tmp_path):
    done = script("eval", tmp_path, "-m", *QUICK, "kappa=7,8", TTF_TRACEBACK="1")
    assert done.returncode == 1 and done.stderr.count("(of the run kappa=") == 2 and "Traceback" in done.stderr


def test_a_killed_sweep_loses_nothing_and_repeats_nothing(tmp_path):
    overrides = ["-m", "limit=64", "throughput.batch_size=0", "tau=20,50,100,150"]
    sweep = Script("eval", *overrides, *places(tmp_path))
    deadline = time.monotonic() + 300
    while not rows(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.02)
    sweep.kill()
    before = {f: f.stat().st_mtime_ns for f in rows(tmp_path)}
    assert 1 <= len(before) < 4
    done = script("eval", tmp_path, *overrides)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("has finished before") == len(before)
    assert len(rows(tmp_path)) == 4
    assert all(f.stat().st_mtime_ns == when for f, when in before.items())
    assert not list((tmp_path / "runs").glob("*.started.json"))


def test_wandb_offline(tmp_path):
    done = script("eval", tmp_path, *QUICK, "logger=wandb", WANDB_MODE="offline", WANDB_SILENT="true")
    assert done.returncode == 0, done.stderr
    (row,) = rows(tmp_path)
    (folder,) = (tmp_path / "logs" / "wandb").glob("offline-run-*")
    assert folder.name.endswith(row.stem)


@pytest.mark.slow
def test_the_demo(tmp_path):
    done = script(
        "demo", tmp_path, "limit=40", "throughput.batch_size=2", "throughput.rounds=5", f"demo_folder={tmp_path}"
    )
    assert done.returncode == 0, done.stderr
    table = (tmp_path / "table.md").read_text()
    assert [line.split(" | ")[0] for line in table.splitlines()[2:]] == [
        "| uncompressed",
        "| literal equations",
        "| default",
    ]
    assert "vit_mini, literal equations, ratio 0.7" in done.stdout and "vit_mini, default, ratio" in done.stdout
    assert (tmp_path / "tokens.png").read_bytes().startswith(PNG)


def test_the_doctor_says_what_is_missing_and_what_it_costs(tmp_path):
    done = script("doctor", tmp_path, f"paths.imagenet={tmp_path}/none", COLUMNS="300")
    assert done.returncode == 0, done.stderr
    assert "timm" in done.stdout and "no ImageNet at" in done.stdout and "no accuracy" in done.stdout


def test_tables_come_from_rows(tmp_path):
    done = script("eval", tmp_path, "-m", *QUICK, "experiment=readings/none,readings/default")
    assert done.returncode == 0, done.stderr
    done = script("table", tmp_path, "table=readings")
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "tables" / "readings.md").read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("**vit_mini: 16 images of scenes, "))
    assert ": 16 images of scenes, float32, " in lines[start]
    assert [line.split(" | ")[0] for line in lines[start + 4 : start + 6]] == [
        "| uncompressed",
        "| the library default",
    ]
    empty = script("table", tmp_path, "table=table6")
    assert empty.returncode == 2 and "no rows of table6" in empty.stderr
    absent = script("table", tmp_path, "table=absent")
    assert absent.returncode == 2 and "there is no table 'absent'" in absent.stderr


def test_figures_come_from_rows(tmp_path):
    missing = script("figure", tmp_path, "figure=fig2")
    assert missing.returncode == 2 and "no rows of fig4a" in missing.stderr
    done = script("eval", tmp_path, "-m", *QUICK, "ratio=0.5,0.8", "experiment=fig4a/token_transform")
    assert done.returncode == 0, done.stderr
    alone = script("figure", tmp_path, "figure=fig4a")
    assert alone.returncode == 2 and "no uncompressed row" in alone.stderr
    assert script("eval", tmp_path, *QUICK, "method=none").returncode == 0
    for figure in ("fig2", "fig4a"):
        done = script("figure", tmp_path, f"figure={figure}", "suffix=_tiny")
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "figures" / f"{figure}_tiny.png").read_bytes().startswith(PNG)


def test_the_matrices_of_all_methods_side_by_side(tmp_path):
    done = script("matrices", tmp_path, f"figures={tmp_path}", "columns=raster")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "matrices.png").read_bytes().startswith(PNG)
    outside = script("matrices", tmp_path, "pick=6")
    assert outside.returncode == 2 and "no image at [6]: there are 6" in outside.stderr


@pytest.mark.parametrize("method", ["evit", "uniform_pool", "ats"])
def test_a_picture_of_methods_that_name_no_tokens(tmp_path, method):
    figure = tmp_path / "tokens.png"
    done = script("visualize", tmp_path, f"method={method}", "limit=2", f"figure={figure}")
    assert done.returncode == 0, done.stderr
    assert figure.read_bytes().startswith(PNG)


def test_a_searched_schedule_is_better_than_equal_cuts_on_other_scenes(tmp_path):
    out = tmp_path / "found.yaml"
    told = ["budget=0.6", "images=64", "evaluations=14", "batch_size=16", f"out={out}"]
    done = script("search", tmp_path, *told)
    assert done.returncode == 0 and "skip=64" in done.stdout, done.stderr
    written = out.read_text()
    assert str(tmp_path) not in written and "command: ttf search budget=0.6" in written
    others = ["skip=64", "limit=128", "throughput.batch_size=0"]
    errors = []
    for how in (["schedule=searched", f"schedule.file={out}"], ["budget=0.6"]):
        row = tmp_path / "row.json"
        assert script("eval", tmp_path, *others, *how, f"out={row}", "force=true").returncode == 0
        found = json.loads(row.read_text())
        assert found["images"] == 128 and found["gmacs"] < 0.21
        errors.append(found["metrics"]["class_token_error"]["value"])
    assert errors[0] < errors[1]
