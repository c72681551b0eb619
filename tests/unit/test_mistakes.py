"""Mistakes in settings: one line that says what is meant, exit status 2, before anything is loaded."""

from __future__ import annotations

import pytest

from tests.scripts_under_test import python, script

BESIDE = "would have no effect beside the other options of token_transform: leave it out"
MISTAKES = {
    # names
    "rato=0.5": "error: rato is no setting of this command: do you mean ratio",
    "method.kapa=0.5": "error: method.kapa is no setting of this command: do you mean method.kappa",
    "method=evitt": "error: there is no method=evitt: choose one of algm, atc, ",
    "model=resnet": "error: there is no model=resnet: choose one of constant_depth, deit_b, ",
    "experiment=table6/kapa_0.3": "error: there is no experiment 'table6/kapa_0.3': do you mean table6/kappa_0.3",
    "experiment=glob(table60/*)": "error: no experiment fits 'table60/*': there are ",
    "paths.imagnet=/data": "error: paths.imagnet is no setting of this command: do you mean paths.imagenet",
    "+x=1": "error: x would have no effect: no such setting is read by this command",
    # types and ranges
    "ratio=1.5": "error: ratio is the share of tokens to keep and must be in (0, 1], got 1.5",
    "budget=0": "error: budget is the share of the multiply-accumulates that may be left and must be in (0, 1], got 0",
    "budget=half": "error: budget must be a number or nothing, got 'half'",
    "ratio=0.5 budget=0.5": "error: ratio and budget both say how far to reduce: give one or the other",
    "budget=0.5 schedule=late": "error: budget would have no effect: ",
    "schedule=auto": "error: schedule=auto follows from a budget: give one, budget=0.65",
    "budget=0.5 method=none": "error: budget would have no effect: ",
    "kappa=2": "error: kappa is the gate threshold (Eq. 3), in [-1, 1], got 2",
    "tau=0": "error: tau is the inverse temperature (Eq. 5) and must be above 0, at most 1e6, got 0",
    "skip=-1": "error: skip is a number of images, at least 0, got -1",
    "skip=1000": "error: skip=1000 leaves no image: there are 1000",
    "schedule=searched budget=0.123": "error: no schedule was searched for model=vit_mini, method=token_transform and ",
    "schedule=searched schedule.file=nowhere.yaml": "error: cannot read the schedule nowhere.yaml (No such file or dir",
    "limit=0": "error: limit is a number of images, at least 1, got 0",
    "batch_size=0": "error: batch_size is images that go through the model together, at least 1, got 0",
    "workers=-1": "error: workers is processes that read images, at least 0, got -1",
    "dtype=float8": "error: dtype must be one of float32, float16, bfloat16, got 'float8'",
    "on_bad_image=ignore": "error: on_bad_image must be one of stop, skip, got 'ignore'",
    "ratio=half": "error: ratio must be a number, got 'half'",
    "ratio=null": "error: ratio must be a number, got None",
    "ratio=[0.7,0.5]": "error: ratio must be a number, got [0.7, 0.5]",
    "ratio=true": "error: ratio must be a number, got True",
    "limit=2.5": "error: limit must be a whole number or nothing, got 2.5",
    "seed=abc": "error: seed must be a whole number, got 'abc'",
    "blocks=3": "error: blocks must be a list, ",
    "blocks=[3.5]": "error: blocks must be a list, ",
    "blocks=[true]": "error: blocks must be a list, ",
    "blocks=[[3]]": "error: blocks must be a list, ",
    "blocks=[]": "error: blocks is an empty list: name at least one, or leave it out",
    "kappa=nan": "error: kappa is the gate threshold (Eq. 3), in [-1, 1], got nan",
    "tau=1e300": "error: tau is the inverse temperature (Eq. 5) and must be above 0, at most 1e6, got 1e+300",
    "method.accumulate=no": "error: accumulate must be true or false, got 'no'",
    "on_missing=foo": "error: on_missing must be one of stop, skip, got 'foo'",
    "checkpoint=": "error: checkpoint is empty: give a value, or leave it out",
    "out=": "error: out is empty: give a value, or leave it out",
    "paths.runs=null": "error: paths.runs must be the path of a folder, got None",
    "throughput.rounds=0": "error: throughput.rounds is a number of rounds, at least 1, got 0",
    "device=abacus": "error: device 'abacus' is not available here: use device=cpu or device=auto",
    "model=hf": "error: network.name is missing: add network.name=VALUE",
    "task.dataset=nonsense": "error: task.dataset=nonsense is none of task=cls: choose one of ",
    "task.data.scenes.length=0": "error: length is a number of scenes, at least 1, got 0",
    "task.data.scenes.length=-5": "error: length is a number of scenes, at least 1, got -5",
    "method=prune_and_merge method.calibrate.images=0 limit=2": "error: method.calibrate.images is a number of images,",
    "checkpoint=README.md": "error: README.md is truncated or corrupt, or a text and not weights: give a",
    "experiment=mini/finetune": "error: experiment=mini/finetune sets data, which this command does not read: is",
    "experiment=x": "error: there is no experiment 'x': their tables are ",
    "--force": "error: --force is no option: settings are written KEY=VALUE, such as force=true",
    # how values are written
    "paths.cache=/a=b": """error: paths.cache=/a=b cannot be read as it is: write text with special characters as '""",
    "paths.cache=/a,b": """error: paths.cache=/a,b cannot be read as it is: write text with special characters as '""",
    "blocks=[a=b]": """error: blocks=[a=b] cannot be read as it is: quote what is in the list, "blocks=['a=b']\"""",
    "ratio": "error: 'ratio' is no setting: write KEY=VALUE",
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


OTHERS = {
    "eval blocks=[99]": "error: blocks [99] are out of range: the model has blocks 0 to 11",
    "benchmark batch=4": "error: batch must be a list, ",
    "benchmark batch=[0]": "error: batch is images of a forward pass, at least 1, got 0",
    "benchmark batch=[]": "error: batch is an empty list: ",
    "benchmark rounds=3": "error: rounds is a number of rounds, and a median needs at least 5, got 3",
    "benchmark modes=[fast]": "error: modes must be a list, each of it one of eager, compiled, ",
    "visualize pick=1": "error: pick must be a list, ",
    "visualize pick=[]": "error: pick is an empty list: ",
    "visualize pick=[-1]": "error: pick is positions in the shuffle, at least 0, got -1",
    "matrices pick=[1]": "error: pick must be a whole number, got [1]",
    "masks ways=3": "error: ways must be a list, ",
    "finetune objective.label_smoothing=2": "error: objective.label_smoothing is shared by all classes, from 0 to 1, ",
    "finetune train.lr=abc": "error: train.lr must be a number, got 'abc'",
    "finetune train.batch_size=1.5": "error: train.batch_size must be a whole number, got 1.5",
    "finetune mixing.mixup_alpha=-1": "error: mixing.mixup_alpha is a concentration, at least 0, got -1",
    "sweep table=table6 overrides=[1]": "error: overrides must be a list, each of it a word, got [1]",
    "sweep table=table6 models=deit_ti": "error: models must be a list, ",
    "search model=vit_mini": "error: budget is missing: say what share of the multiply-accumulates may be left",
    "search budget=0.6 images=4": "error: images is a number of images, at least 8, got 4",
    "search budget=0.6 blocks=[3]": "error: blocks would have no effect: no such setting is read by this command",
    "search budget=0.6 method=none": "error: budget would have no effect: none reads none of these",
    "search budget=0.6 compare=top1": "error: compare must be one of kl, error, got 'top1'",
    "search budget=0.6 out=schedule.txt": "error: out is the file of a schedule and ends in .yaml, got 'schedule.txt'",
    "search budget=0.6 method=diffrate": "error: this method brings its own numbers of tokens, none are left to",
    "search budget=0.6 task=vqa model=llava_mini": "error: a search compares outputs of one pass, and task=vqa has ",
    "benchmark jobs=-1": "error: jobs is processes that compile side by side, at least 1, got -1",
    "benchmark minutes=abc": "error: minutes must be a number, got 'abc'",
    "sweep table=table6 overrides=['nonsense=1']": "error: nonsense is no setting of ttf eval",
    "sweep table=table6 overrides=['limit=two']": "error: limit must be a whole number or nothing, got 'two'",
    "sweep table=table6 overrides=['ratio=2']": "error: ratio is the share of tokens to keep and must be in (0",
    "matrices budget=0.5": "error: budget would have no effect: ",
    "report tau=1": "error: tau is no setting of this command",
    "report compar=true": "error: compar is no setting of this command: do you mean compare?",
    "figure figure=nonsense": "error: there is no figure 'nonsense': choose one of ",
    "answers task=vqa model=vit_mini": "error: model=vit_mini is not for task=vqa: choose one of ",
    "visualize figure=x.gif": "error: x.gif must end in .png: figures are written as PNG",
    "report compare=maybe": "error: compare must be true or false, got 'maybe'",
}


@pytest.mark.parametrize("given", OTHERS)
def test_so_is_one_of_another_command(given: str, tmp_path):
    name, *told = given.split()
    done = script(name, *told, f"paths.logs={tmp_path}")
    assert done.returncode == 2 and not done.stdout, done
    (line,) = done.stderr.splitlines()
    assert line.startswith(OTHERS[given]), line


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
