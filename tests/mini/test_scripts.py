"""The scripts as a user calls them, in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
QUICK = ["limit=16", "throughput.batch_size=0"]
PNG = b"\x89PNG"


def script(name: str, folder: Path, *overrides: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, f"scripts/{name}.py", *overrides]
    command += [] if name in ("table", "figure") else [f"paths.logs={folder}/logs", f"paths.runs={folder}/runs"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)


def rows(folder: Path) -> list[Path]:
    return [f for f in (folder / "runs").glob("*.json") if "." not in f.stem]


def test_one_row_with_out(tmp_path):
    out = tmp_path / "row.json"
    done = script("eval", tmp_path, *QUICK, "ratio=0.6", f"out={out}")
    assert done.returncode == 0, done.stderr
    assert "speed" not in done.stdout and "GMACs" in done.stdout
    row = json.loads(out.read_text())
    assert row == json.loads(rows(tmp_path)[0].read_text())
    assert row["command"] == "python scripts/eval.py limit=16 throughput.batch_size=0 ratio=0.6"


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
    done = script("eval", tmp_path, "-m", *QUICK, "kappa=0.3,7,0.5", "tau=150")
    assert done.returncode == 2
    assert "kappa is a cosine threshold" in done.stderr
    assert len(rows(tmp_path)) == 2


def test_a_killed_sweep_loses_nothing_and_repeats_nothing(tmp_path):
    overrides = ["-m", "limit=64", "throughput.batch_size=0", "tau=20,50,100,150"]
    folders = [f"paths.logs={tmp_path}/logs", f"paths.runs={tmp_path}/runs"]
    command = [sys.executable, "scripts/eval.py", *overrides, *folders]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not rows(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
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
    assert [line.split(" | ")[0] for line in table.splitlines()[2:]] == ["| uncompressed", "| paper", "| default"]
    assert (tmp_path / "tokens.png").read_bytes().startswith(PNG)


def test_the_doctor_says_what_is_missing_and_what_it_costs(tmp_path):
    done = script("doctor", tmp_path, f"paths.imagenet={tmp_path}/none", COLUMNS="300")
    assert done.returncode == 0, done.stderr
    assert "timm" in done.stdout and "no ImageNet at" in done.stdout and "no accuracy" in done.stdout


def test_tables_come_from_rows(tmp_path):
    for method in ("none", "token_transform"):
        assert script("eval", tmp_path, *QUICK, f"method={method}", f"name=probe/{method}").returncode == 0
    done = script("table", tmp_path, "table=probe", f"paths.runs={tmp_path}/runs", f"paths.results={tmp_path}")
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "tables" / "probe.md").read_text().splitlines()
    assert lines[0].startswith("**vit_mini: 16 images of scenes, float32, ")
    assert [line.split(" | ")[0] for line in lines[4:6]] == ["| uncompressed", "| token_transform"]
    empty = script("table", tmp_path, "table=absent", f"paths.runs={tmp_path}/runs")
    assert empty.returncode == 2 and "no rows of absent" in empty.stderr


def test_figures_come_from_rows(tmp_path):
    folders = [f"paths.runs={tmp_path}/runs", f"paths.results={tmp_path}"]
    missing = script("figure", tmp_path, "figure=fig2", *folders)
    assert missing.returncode == 2 and "no rows of fig4a" in missing.stderr
    done = script("eval", tmp_path, "-m", *QUICK, "ratio=0.5,0.8", "name=fig4a/token_transform")
    assert done.returncode == 0, done.stderr
    alone = script("figure", tmp_path, "figure=fig4a", *folders)
    assert alone.returncode == 2 and "no uncompressed row" in alone.stderr
    assert script("eval", tmp_path, *QUICK, "method=none").returncode == 0
    for figure in ("fig2", "fig4a"):
        done = script("figure", tmp_path, f"figure={figure}", "suffix=_tiny", *folders)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "figures" / f"{figure}_tiny.png").read_bytes().startswith(PNG)


def test_the_matrices_of_all_methods_side_by_side(tmp_path):
    done = script("matrices", tmp_path, f"paths.results={tmp_path}", "columns=raster")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "figures" / "matrices.png").read_bytes().startswith(PNG)
    outside = script("matrices", tmp_path, "pick=6")
    assert outside.returncode == 2 and "no image at [6]: there are 6" in outside.stderr


@pytest.mark.parametrize("method", ["evit", "uniform_pool", "ats"])
def test_a_picture_of_methods_that_name_no_tokens(tmp_path, method):
    figure = tmp_path / "tokens.png"
    done = script("visualize", tmp_path, f"method={method}", "limit=2", f"figure={figure}")
    assert done.returncode == 0, done.stderr
    assert figure.read_bytes().startswith(PNG)
