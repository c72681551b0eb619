"""Settings that nothing would read: one line, exit status 2, before torch is imported."""

from __future__ import annotations

from tests.scripts_under_test import python
from ttf.unread import check_once

WITHOUT = "would have no effect: no such setting is read by this command"
ONLY = "would have no effect: read only"
CASES = {
    # given twice
    "eval ratio=0.5 ratio=0.7": "ratio is given 2 times, ratio=0.5 and ratio=0.7: give it once",
    "eval -m ratio=0.5,0.7 ratio=0.9": "ratio is given 2 times, ratio=0.5,0.7 and ratio=0.9: give it once",
    "eval limit=1 +limit=2": "limit is given 2 times, limit=1 and +limit=2: give it once",
    "finetune train.lr=1 train.lr=2 train.lr=3": "train.lr is given 3 times, train.lr=1 and train.lr=2 and train.lr=3",
    "sweep table=table6 table=table7": "table is given 2 times",
    "sweep table=table6 overrides=['limit=1','limit=2']": "limit is given 2 times",
    "benchmark batch=[1] batch=[2]": "batch is given 2 times",
    "search budget=0.5 budget=0.6": "budget is given 2 times",
    "visualize pick=[1] pick=[2]": "pick is given 2 times",
    "figure figure=fig4a figure=fig4b": "figure is given 2 times",
    "table table=table6 table=table7": "table is given 2 times",
    "doctor paths.imagenet=a paths.imagenet=b": "paths.imagenet is given 2 times",
    # of another command
    "benchmark checkpoint=x.pth": f"checkpoint {WITHOUT}",
    "visualize dtype=float16": f"dtype {WITHOUT}",
    "demo method=tome": f"method {WITHOUT}",
    "doctor ratio=0.5": f"ratio {WITHOUT}",
    # beside what was chosen
    "eval throughput.batch_size=0 throughput.rounds=3": f"throughput.rounds {ONLY} where speed is measured",
    "benchmark minutes=3": f"minutes {ONLY} where jobs is given",
    "masks ratio=0.5": f"ratio {ONLY} of the experiments in ways",
    "visualize task=det model=vitdet_mini finetuned=true": f"finetuned {ONLY} of task=cls",
    "finetune pretrained=false checkpoint=x.pth": f"checkpoint {ONLY} where pretrained=true",
    "sweep table=table6 models=[nonsense] --list": f"models {ONLY} without --list",
    "sweep table=table6 models=[nonsense]": "table6 has no rows of nonsense: choose of deit_ti, vit_ti_augreg",
    "sweep table=table6 overrides=['kappa=0.9']": "overrides take paths, device, device_map, ",
    "sweep table=table6 publish=true overrides=['limit=9']": "overrides take paths, device, device_map, ",
}
RUN = """
import contextlib, io, sys
from ttf import commands

for given in {cases!r}:
    sys.argv = ["ttf", *given.split()]
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            commands.main()
            code = 0
        except SystemExit as end:
            code = end.code
    print(code, "torch" in sys.modules, said.getvalue(), end="")
"""


def test_nothing_is_ignored_without_a_word() -> None:
    done = python("-c", RUN.format(cases=list(CASES)))
    assert done.returncode == 0, done.stderr
    said = dict(zip(CASES, done.stdout.splitlines(), strict=True))
    wrong = {given: line for given, line in said.items() if not line.startswith(f"2 False error: {CASES[given]}")}
    assert not wrong


def test_what_is_taken_away_may_be_given_anew() -> None:
    """Hydra's own way to replace a group."""
    check_once(["~logger", "+logger=none", "-m", "ratio=0.5,0.7", "blocks=[3,6]"])
