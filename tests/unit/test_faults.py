"""Kinds of mistakes through the command line: exit status 2, one line that says what is meant, no advice of others."""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tests.drilled import Outcome, drilled
from ttf.cli import expanded
from ttf.models.weights import EMBEDDED
from ttf.settings import COMMANDS

FEW = "limit=2 throughput.batch_size=0"
GROUP = "is a group of settings, got None: leave"
MINI = "finetune experiment=mini/finetune"
SETTINGS = {
    # numbers that become 0 or infinite, and of another type below a _target_
    "eval tau=1e-300": "tau is too close to 0 to compute with, got 1e-300",
    "eval task.data.scenes.length=abc": "task.data.scenes.length must be a whole number, got 'abc'",
    "eval task.data.scenes.seed=-1": "seed of the scenes must be at least 0, got -1",
    "eval task=seg model=segmenter_mini task.window_batch=abc": "task.evaluation.batch_size must be a whole number, ",
    f"{MINI} data.test.length=[3]": "data.test.length must be a whole number, got [3]",
    "eval device=meta": "device 'meta' is not available here: ",
    # lists
    "benchmark batch=[1,1]": "batch names 1 twice: name it once",
    "contract dtypes=float32": "dtypes must be a list, each of it one of float32, float16, bfloat16, got 'float32'",
    # parts of a config that are gone
    "eval throughput=null": "throughput=null chooses nothing: ",
    "eval model.network=null": f"model.network {GROUP} model.network out",
    "eval model.weights=hub": "model.network.model_name is missing: what is chosen beside it reads it",
    "eval method=null": "method=null chooses nothing: method is one of algm, atc, ",
    "eval method={}": "method={} would have no effect: it adds nothing to what is there",
    "eval ~method": "method is needed: leave ~method out",
    f"{MINI} train=null": f"train {GROUP} train out",
    # options, and how settings are written
    "eval -x": "-x is no option: settings are written KEY=VALUE, such as x=true",
    "eval --cfg foo": "--cfg is followed by one of job, hydra, all, got foo",
    "eval =0.5": "'=0.5' is no setting: write KEY=VALUE",
    "eval experiment=": "experiment= chooses nothing: experiment is one of ",
    "eval experiment=glob(table6/*)": "experiment=table6/kappa_0.3,... are several runs: ttf eval -m takes them one ",
    "eval checkpoint=~/x.pth": "checkpoint=~/x.pth begins with ~, which is a folder to shells alone: write ",
    "eval hydra/launcher=foo": "there is no hydra/launcher=foo: perhaps a plugin of Hydra is not installed ",
    "eval network.name=x": "network.name is no setting of what is chosen here, or is set as a whole",
    "eval ++ratio=2": "ratio is the share of tokens to keep and must be in (0, 1], got 2",
    "sweep table=table6 overrides=['paths.logs']": "'paths.logs' cannot be read: write KEY=VALUE",
    # what does not go together
    "eval +task.nonsense=1": "task.nonsense would have no effect: no such setting is read by this command",
    "eval finetuned=true": "finetuned=true takes the weights of an experiment: give experiment=NAME, or checkpoint=",
    "benchmark worker=x": "worker is for processes that ttf benchmark jobs=N starts: leave it out",
    "masks task=cls model=vit_mini": "this picture is not of task=cls: leave task out, or choose another command",
    "matrices suffix=/../x": "suffix is a part of a file's name, without slashes, got '/../x'",
    "report paths.root=/nowhere": "/nowhere/docs/report.yaml cannot be read (No such file or directory): ",
    "app host=999.1.1.1": "nothing can listen on host=999.1.1.1 port=7860 ",
}
STATE = load_file(EMBEDDED / "vit_mini.safetensors")


def _saved(content: object) -> Callable[[Path], object]:
    return lambda path: torch.save(content, path)


WEIGHTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "array.npy": (lambda path: np.save(path, np.zeros(3)), "is a NumPy array (npy): convert it to safetensors"),
    "picture.pth": (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(99)), "is an image and not weights: "),
    "binary.ckpt": (lambda path: path.write_bytes(bytes(range(256)) * 4), "is no file of weights that is read here: "),
    "sparse.pth": (_saved({**STATE, "head.weight": STATE["head.weight"].to_sparse()}), "has sparse values in head."),
    "ones.pth": (_saved({k: torch.ones_like(v) for k, v in STATE.items()}), "has the same value everywhere in each "),
    "loss.pth": (
        _saved({"state_dict": {**{f"model.{k}": v for k, v in STATE.items()}, "loss.weight": torch.ones(3)}}),
        "has tensors that the model has no place for: another architecture, or save the model's state dict alone; ",
    ),
}


def _under(prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in STATE.items()}


LOADED: dict[str, tuple[Callable[[Path], object], str]] = {
    "ddp.pth": (_saved(_under("module.")), ""),
    "compiled.pth": (_saved({"model": _under("_orig_mod."), "epoch": 3}), ""),
    "lightning.ckpt": (_saved({"state_dict": _under("model.")}), "names were taken without 'model.'\n"),
    "swa.pth": (_saved({**_under("module."), "n_averaged": torch.tensor(5)}), "swa.pth: n_averaged left out\n"),
    "deepspeed.pth": (_saved({"module": STATE, "optimizer": None}), ""),
    "w.pth": (lambda path: save_file(STATE, path), ""),
    "two.pth": (_saved({"model": STATE, "model_ema": STATE}), ": model was taken, and model_ema left\n"),
}


def _outcomes(folder: Path, cases: dict[str, list[str]]) -> dict[str, Outcome]:
    """By the name of the case; all in one test, or every worker that has one of them would run them all."""
    given: list[Any] = [(str(folder), [*words, f"paths.logs={folder}/logs"], {}) for words in cases.values()]
    return dict(zip(cases, drilled(folder, given), strict=True))


def test_settings(tmp_path: Path) -> None:
    found = _outcomes(tmp_path, {words: words.split() for words in SETTINGS})
    assert len(found) == len(SETTINGS) > 30
    for words, (code, _, said) in found.items():
        assert code == 2 and said.startswith(f"error: {SETTINGS[words]}") and said.count("\n") == 1, (words, said)


def test_files_of_weights_whatever_their_names(tmp_path: Path) -> None:
    for name, (make, _) in (WEIGHTS | LOADED).items():
        make(tmp_path / name)
    found = _outcomes(
        tmp_path, {name: ["eval", *FEW.split(), f"checkpoint={tmp_path / name}"] for name in WEIGHTS | LOADED}
    )
    for name, (_, expected) in WEIGHTS.items():
        code, _, said = found[name]
        assert code == 2 and said.startswith("error: ") and said.count("\n") == 1, (name, said)
        assert f"{name} {expected}" in said and "weights_only" not in said
    for name, (_, expected) in LOADED.items():
        code, _, said = found[name]
        assert code == 0 and expected in said, (name, said)


def test_options_may_stand_between_settings() -> None:
    assert expanded(["ratio=0.5", "-m", "limit=2", "--cfg", "job"]) == ["-m", "--cfg", "job", "ratio=0.5", "limit=2"]
    assert expanded(["augment=null", "--list"]) == ["~augment", "list=true"]


OTHERS: list[Any] = ["abc", 1.5, True, [3.5], [[3]], {"a": 1}, -1e300, 10**30, float("nan"), b"x"]


def _allowed(wanted: Any) -> set[Any]:
    """Kinds of values that a declared type is made of."""
    if get_origin(wanted) is Literal:
        return {type(one) for one in get_args(wanted)}
    if get_args(wanted):
        origin = get_origin(wanted)
        inner = set[Any]().union(*(_allowed(one) for one in get_args(wanted)))
        return inner if origin in (Union, types.UnionType) else {list if origin is Sequence else dict}
    return {wanted, int} if wanted is float else {wanted}


@given(st.sampled_from(sorted(COMMANDS)), st.data())
def test_any_value_of_any_setting(command: str, data: st.DataObject) -> None:
    kind = COMMANDS[command]
    name, value = data.draw(st.sampled_from(sorted(get_type_hints(kind)))), data.draw(st.sampled_from(OTHERS))
    said = ""
    try:
        kind(**{name: value})
    except ValueError as error:
        said = str(error)
    if said:
        assert said.startswith(name) and "\n" not in said
    else:
        assert type(value) in _allowed(get_type_hints(kind)[name])
        assert not isinstance(value, int | float) or abs(value) < 1e30
