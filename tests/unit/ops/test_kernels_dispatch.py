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
from timm.models.vision_transformer import VisionTransformer
from ttf.ops import backend
from ttf.ops.kernels import dispatch

calls = []
def counted(name):
    inner = getattr(dispatch, name)
    def run(*args, **kwargs):
        calls.append(name)
        return inner(*args, **kwargs)
    return patch.object(dispatch, name, run)

torch.manual_seed(0)
model = VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=2, num_classes=5).eval()
images = torch.randn(1, 3, 32, 32)
for options in ({}, {"preset": "paper"}, {"gate": "mask"}, {"selection": "pool"}):
    ttf.apply(model, ratio=0.5, blocks=(0, 1), **options)
    answers, matrices = [], []
    for name in ("auto", "triton"):
        calls.clear()
        a, b, c = map(counted, ("attention", "summed_attention", "transform"))
        with torch.no_grad(), backend(name), a, b, c:
            answers.append(model(images))
            matrices.append(ttf.trace(model, images)[0].W)
        print(options, name, sorted(set(calls)))
    torch.testing.assert_close(answers[1], answers[0], atol=2e-4, rtol=0)
    torch.testing.assert_close(matrices[1], matrices[0], atol=2e-4, rtol=0)
    ttf.remove(model)
    calls.clear()
ttf.apply(model, ratio=0.5, blocks=(0,))
with backend("triton"), counted("summed_attention"):
    model(images).sum().backward()  # a gradient: the plain operators
print("gradient", calls)
"""


@pytest.mark.skipif(torch.cuda.is_available() and HAS_TRITON, reason="this machine has a GPU and triton")
def test_kernels_cannot_be_asked_for_where_they_cannot_run() -> None:
    with pytest.raises(ValueError, match='"triton" needs a GPU and the package triton, without TTF_KERNELS=0: use'):
        backend("triton")


@pytest.mark.slow
@pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed")
def test_a_model_with_kernels_gives_the_same_answer() -> None:
    kernels_worker.skip_without_loops()
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    run = subprocess.run([sys.executable, "-c", WHOLE_MODEL], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    both = "['attention', 'summed_attention', 'transform']"
    assert run.stdout.splitlines() == [
        "{} auto []",
        f"{{}} triton {both}",
        "{'preset': 'paper'} auto []",
        f"{{'preset': 'paper'}} triton {both}",
        "{'gate': 'mask'} auto []",
        f"{{'gate': 'mask'}} triton {both}",
        "{'selection': 'pool'} auto []",
        "{'selection': 'pool'} triton ['attention', 'summed_attention']",
        "gradient []",
    ]
