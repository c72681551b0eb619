"""Mistakes in settings: one line that says what is meant, exit status 2, before anything is loaded."""

from __future__ import annotations

import pytest

from tests.scripts_under_test import python, script

BESIDE = "would have no effect beside the other options of token_transform: leave it out"
MISTAKES = {
    # names
    "rato=0.5": "error: rato is no setting of this command: do you mean ratio",
    "method.kapa=0.5": "error: method.kapa is no setting of this command: do you mean method.kappa",
    "method=evitt": "error: there is no method=evitt: choose one of ats, best_reading, ",
    "model=resnet": "error: there is no model=resnet: choose one of deit_b, ",
    "experiment=table6/kapa_0.3": "error: there is no experiment 'table6/kapa_0.3': do you mean table6/kappa_0.3",
    "experiment=glob(table60/*)": "error: no experiment fits 'table60/*': there are ",
    "paths.imagnet=/data": "error: paths.imagnet is no setting of this command: do you mean paths.imagenet",
    "+x=1": "error: x would have no effect: no such setting is read by this command",
    # types and ranges
    "ratio=1.5": "error: ratio is the share of tokens to keep and must be in (0, 1], got 1.5",
    "kappa=2": "error: kappa is the gate threshold (Eq. 3), in [-1, 1], got 2",
    "tau=0": "error: tau is the inverse temperature (Eq. 5) and must be above 0, at most 1e6, got 0",
    "limit=0": "error: limit is a number of images, at least 1, got 0",
    "batch_size=0": "error: batch_size is images that go through the model together, at least 1, got 0",
    "workers=-1": "error: workers is processes that read images, at least 0, got -1",
    "dtype=float8": "error: dtype must be one of float32, float16, bfloat16, got 'float8'",
    "on_bad_image=ignore": "error: on_bad_image must be one of stop, skip, got 'ignore'",
    "ratio=half": "error: ratio must be ",
    "limit=2.5": "error: limit must be ",
    # what nothing reads
    "method=evit kappa=0.3": "error: kappa would have no effect: evit with this schedule reads ratio",
    "method=none ratio=0.5": "error: ratio would have no effect: none reads none of these",
    "method=none recover=true": "error: recover would have no effect: none reads none of these",
    "method.similarity=euclidean kappa=0.3": f"error: kappa {BESIDE}",
    "method.normalise=false tau=20": f"error: tau {BESIDE}",
    "schedule=late blocks=[3]": "error: blocks would have no effect: ",
    "method=none schedule=late": "error: schedule would have no effect: none reads none of these",
    "method=diffrate schedule.rounding=ceil": "error: schedule.rounding would have no effect: ",
}


@pytest.mark.parametrize("given", MISTAKES)
def test_a_mistake_is_one_line(given: str, tmp_path):
    done = script("eval", *given.split(), f"paths.logs={tmp_path}")
    assert done.returncode == 2 and not done.stdout, done
    (line,) = done.stderr.splitlines()
    assert line.startswith(MISTAKES[given]), line
    assert not list(tmp_path.rglob("*.json"))


WITHOUT_TORCH = """
import runpy, sys
for arguments in {calls!r}:
    sys.argv = arguments.split()
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as error:
        print(error.code, "torch" in sys.modules)
"""
CALLS = [
    "scripts/eval.py rato=0.5",
    "scripts/eval.py method=evit kappa=0.3",
    "scripts/sweep.py table=nonsense",
    "scripts/sweep.py table=table6 scale=huge",
    "scripts/benchmark.py ratio=7",
    "scripts/finetune.py rato=0.5",
    "scripts/visualize.py rato=0.5",
    "scripts/report.py rato=0.5",
]


def test_typos_show_before_torch_is_imported() -> None:
    done = python("-c", WITHOUT_TORCH.format(calls=CALLS))
    assert done.stdout.splitlines() == ["2 False"] * len(CALLS), done.stdout + done.stderr
    assert len(done.stderr.splitlines()) == len(CALLS)
    assert all(line.startswith("error: ") for line in done.stderr.splitlines())
