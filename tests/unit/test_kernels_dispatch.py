"""The kernels inside a compressed model, in triton's interpreter: off unless asked for, and then the same answer."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from tests.unit import kernels_worker
from ttf.ops.kernels import HAS_TRITON, dispatch

WHOLE_MODEL = """
import os, sys, torch, ttf
from unittest.mock import patch
from ttf.models.vit_mini import vit_mini
from ttf.ops.kernels import sums, transform

calls = []
def counted(module, name):
    inner = getattr(module, name)
    def run(*args, **kwargs):
        calls.append(name)
        return inner(*args, **kwargs)
    return patch.object(module, name, run)

torch.manual_seed(0)
model = vit_mini().eval()
images = torch.randn(2, 3, *model.patch_embed.img_size)
for options in ({}, {"preset": "paper"}, {"gate": "mask"}, {"selection": "pool"}):
    ttf.apply(model, ratio=0.5, **options)
    answers, matrices = [], []
    for switch in ("0", "1"):
        os.environ["TTF_KERNELS"] = switch
        calls.clear()
        with torch.no_grad(), counted(sums, "column_sums"), counted(transform, "transform_down"):
            answers.append(model(images))
            matrices.append(ttf.trace(model, images)[0].W)
        print(options, switch, sorted(set(calls)))
    torch.testing.assert_close(answers[1], answers[0], atol=2e-4, rtol=0)
    torch.testing.assert_close(matrices[1], matrices[0], atol=2e-4, rtol=0)
    ttf.remove(model)
    calls.clear()
ttf.apply(model, ratio=0.5)
with counted(sums, "column_sums"):
    model(images).sum().backward()  # a gradient: the plain operators
print("gradient", calls)
"""


def test_kernels_are_off_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TTF_KERNELS", raising=False)
    assert not dispatch.enabled(torch.ones(1))
    monkeypatch.setenv("TTF_KERNELS", "1")
    assert not dispatch.enabled(torch.ones(1))  # on a CPU


@pytest.mark.slow
@pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed")
def test_a_model_with_kernels_gives_the_same_answer() -> None:
    kernels_worker.skip_without_loops()
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    run = subprocess.run([sys.executable, "-c", WHOLE_MODEL], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    both = "['column_sums', 'transform_down']"
    assert run.stdout.splitlines() == [
        "{} 0 []", f"{{}} 1 {both}",
        "{'preset': 'paper'} 0 []", f"{{'preset': 'paper'}} 1 {both}",
        "{'gate': 'mask'} 0 []", f"{{'gate': 'mask'}} 1 {both}",
        "{'selection': 'pool'} 0 []", "{'selection': 'pool'} 1 ['column_sums']",
        "gradient []",
    ]  # fmt: skip
