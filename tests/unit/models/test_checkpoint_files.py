"""Weights as trainings and downloads leave them: other names, other files, values that no training leaves."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ttf.models.checkpoint_files import read
from ttf.models.weights import load_strictly

State = dict[str, Tensor]


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Sequential(nn.Linear(3, 2)))


def _named(state: State, prefix: str) -> State:
    return {prefix + name: value for name, value in state.items()}


def _inside(state: State, word: str) -> State:
    """A wrapper around an inner module."""
    return {name.replace("1.0.", f"1.{word}.0."): value for name, value in state.items()}


AS_SAVED: dict[str, Callable[[State], object]] = {
    "DDP": lambda s: _named(s, "module."),
    "torch.compile": lambda s: _named(s, "_orig_mod."),
    "DDP of torch.compile": lambda s: _named(s, "module._orig_mod."),
    "torch.compile of a part": lambda s: _inside(s, "_orig_mod"),
    "FSDP": lambda s: _inside(_named(s, "_fsdp_wrapped_module."), "_fsdp_wrapped_module"),
    "checkpointing": lambda s: _inside(s, "_checkpoint_wrapped_module"),
    "Lightning": lambda s: {"state_dict": _named(s, "model."), "epoch": 3, "global_step": 7},
    "Lightning of a compiled model": lambda s: {"state_dict": _named(s, "net._orig_mod.")},
    "SWA": lambda s: {**_named(s, "module."), "n_averaged": torch.tensor(5)},
    "DeepSpeed": lambda s: {"module": s, "optimizer": None},
    "a name of its own": lambda s: {"weights_of_the_student": s, "epoch": 3},
    "matrices that lie transposed in memory": lambda s: {k: v.t().contiguous().t() for k, v in s.items()},
    "averaged, nested": lambda s: {"state_dict": {"model": s}, "args": None},
}


@pytest.mark.parametrize("kind", AS_SAVED)
def test_names_of_trainings(kind: str, network: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = {name: value.clone() for name, value in network.state_dict().items()}
    torch.save(AS_SAVED[kind](state), tmp_path / "w.pth")
    for parameter in network.parameters():
        parameter.data.zero_()
    load_strictly(network, read(tmp_path / "w.pth")[0], "w.pth")
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    said = capsys.readouterr().err
    if "Lightning" in kind:
        assert said in ("w.pth: names were taken without 'model.'\n", "w.pth: names were taken without 'net.'\n")
    elif kind == "SWA":
        assert said == "w.pth: n_averaged left out\n"


def test_shards(network: nn.Module, tmp_path: Path) -> None:
    state = network.state_dict()
    places = {name: f"model-0000{1 + number % 2}-of-00002.safetensors" for number, name in enumerate(state)}
    for file in set(places.values()):
        save_file({name: state[name] for name in state if places[name] == file}, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    assert all(torch.equal(value, state[name]) for name, value in read(index)[0].items())
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match=r"names shards that are not beside it: model-00002-of-00002\.safetensors"):
        read(index)
    index.write_text(json.dumps({"weight_map": {"0.weight": "../other.safetensors"}}))
    with pytest.raises(ValueError, match="names shards that are not beside it"):
        read(index)


def _zip(name: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr(name, b"x")
    return content.getvalue()


def _npz() -> bytes:
    content = io.BytesIO()
    np.savez(content, a=np.zeros(3))
    return content.getvalue()


FOREIGN = {
    "page.pth": (b"<!DOCTYPE html><title>Sign in</title>", "is a web page and not weights"),
    "page.safetensors": (b"\n<html>", "is a web page and not weights"),
    "pointer.safetensors": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "is a pointer of Git LFS"),
    "w.pth.gz": (b"\x1f\x8b\x08\x00", "is compressed: unpack it first"),
    "w.h5": (b"\x89HDF\r\n\x1a\n", "is an HDF5 file"),
    "w.gguf": (b"GGUF\x03", "is a GGUF file"),
    "w.npz": (_npz(), "holds NumPy arrays"),
    "program.pt": (_zip("archive/constants.pkl"), "is a TorchScript program"),
    "files.zip": (_zip("readme.txt"), "is a zip archive without weights"),
    "empty.pth": (b"", r"is truncated or corrupt \(it is empty\)"),
    "text.pth": (b"weights", "is truncated or corrupt"),
    "index.json": (b"{", "is no index of shards"),
    "list.json": (b"[]", "is no index of shards"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_other_files_are_named_for_what_they_are(name: str, tmp_path: Path) -> None:
    content, said = FOREIGN[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} {said}") as caught:
        read(tmp_path / name)
    assert "weights_only" not in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_beside_a_state_dict(tmp_path: Path) -> None:
    state = {"a": torch.ones(1)}
    wrong = {
        "two state dicts": ({"student": state, "teacher": state}, r"has several state dicts \(student, teacher\)"),
        "a number": ({**state, "epoch": 3}, "beside its tensors epoch"),
        "a list": ([torch.ones(1)], "a list"),
        "nothing": ({}, "a dict"),
    }
    for content, said in wrong.values():
        torch.save(content, tmp_path / "w.pth")
        with pytest.raises(ValueError, match=said):
            read(tmp_path / "w.pth")
    with pytest.raises(ValueError, match="is a folder"):
        read(tmp_path)


def test_values_that_no_training_leaves(network: nn.Module) -> None:
    state = network.state_dict()
    with pytest.raises(ValueError, match=r"has int8 values in 0\.bias"):
        load_strictly(network, {name: value.to(torch.int8) for name, value in state.items()}, "w.pth")
    with pytest.raises(ValueError, match="the same value everywhere in each of its 2 matrices"):
        load_strictly(network, {name: torch.zeros_like(value) for name, value in state.items()}, "w.pth")
    load_strictly(network, {name: value.bfloat16() for name, value in state.items()}, "w.pth")


def test_tensors_that_the_model_has_no_place_for(network: nn.Module) -> None:
    state = network.state_dict()
    with pytest.raises(ValueError, match="has tensors that the model has no place for.*not in the model: teacher"):
        load_strictly(network, {**state, "teacher": torch.ones(2)}, "w.pth")
