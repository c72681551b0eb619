"""The kernels inside a compressed model, in triton's interpreter: off unless asked for, and then the same answer."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from tests.unit.ops import kernels_worker
from ttf.ops import backend
from ttf.ops.kernels import HAS_TRITON

WHOLE_MODEL = """
import torch, ttf
from unittest.mock import patch
from ttf.models.vit_mini import vit_mini
from ttf.ops import backend
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
images = torch.randn(1, 3, *model.patch_embed.img_size)
for options in ({}, {"preset": "paper"}, {"gate": "mask"}, {"selection": "pool"}):
    ttf.apply(model, ratio=0.5, **options)
    answers, matrices = [], []
    for name in ("auto", "triton"):
        calls.clear()
        counting = counted(sums, "column_sums"), counted(transform, "transform_down")
        with torch.no_grad(), backend(name), counting[0], counting[1]:
            answers.append(model(images))
            matrices.append(ttf.trace(model, images)[0].W)
        print(options, name, sorted(set(calls)))
    torch.testing.assert_close(answers[1], answers[0], atol=2e-4, rtol=0)
    torch.testing.assert_close(matrices[1], matrices[0], atol=2e-4, rtol=0)
    ttf.remove(model)
    calls.clear()
ttf.apply(model, ratio=0.5)
with backend("triton"), counted(sums, "column_sums"):
    model(images).sum().backward()  # a gradient: the plain operators
print("gradient", calls)
"""


@pytest.mark.skipif(torch.cuda.is_available() and HAS_TRITON, reason="this machine has a GPU and triton")
def test_kernels_cannot_be_asked_for_where_they_cannot_run() -> None:
    with pytest.raises(ValueError, match='"triton" needs a GPU and the package triton: use "auto"$'):
        backend("triton")


@pytest.mark.slow
@pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed")
def test_a_model_with_kernels_gives_the_same_answer() -> None:
    kernels_worker.skip_without_loops()
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    run = subprocess.run([sys.executable, "-c", WHOLE_MODEL], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    both = "['column_sums', 'transform_down']"
    assert run.stdout.splitlines() == [
        "{} auto []",
        f"{{}} triton {both}",
        "{'preset': 'paper'} auto []",
        f"{{'preset': 'paper'}} triton {both}",
        "{'gate': 'mask'} auto []",
        f"{{'gate': 'mask'}} triton {both}",
        "{'selection': 'pool'} auto []",
        "{'selection': 'pool'} triton ['column_sums']",
        "gradient []",
    ]
