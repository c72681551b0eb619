"""torch.compile, torch.export and ONNX see a compressed model as one graph."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

import ttf

Tiny = Callable[..., VisionTransformer]
Images = Callable[..., Tensor]

CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "default": ({}, {}),
    "paper": ({}, {"preset": "paper"}),
    "recover": ({}, {"recover": True}),
    "masked": ({}, {"gate": "mask", "feature": "norm"}),
    "average": ({"global_pool": "avg", "class_token": False}, {}),
    "map": ({"global_pool": "map"}, {}),
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def compressed(request: pytest.FixtureRequest, tiny: Tiny) -> VisionTransformer:
    """Four blocks, of which two reduce."""
    changes, options = request.param
    model = tiny(depth=4, **changes)
    ttf.apply(model, blocks=(1, 2), **options)
    return model.requires_grad_(False)


def test_one_graph(compressed: VisionTransformer, images: Images) -> None:
    x = images()
    torch.compiler.reset()
    graph = torch.compile(compressed, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(graph(x), compressed(x), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("recover", [False, True])
def test_compiled_code_equals_eager(recover: bool, tiny: Tiny, images: Images) -> None:
    model, x = ttf.apply(tiny(depth=4), blocks=(1, 2), recover=recover).requires_grad_(False), images()
    torch.compiler.reset()
    torch.testing.assert_close(torch.compile(model, fullgraph=True)(x), model(x), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_batch_sizes_share_compiled_code(tiny: Tiny, images: Images) -> None:
    model = ttf.apply(tiny(depth=4), blocks=(1, 2)).requires_grad_(False)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for batch in (2, 5):
            x = images(batch)
            torch.testing.assert_close(compiled(x), model(x), atol=1e-4, rtol=1e-4)


def test_compiled_training_equals_eager(tiny: Tiny, images: Images) -> None:
    model, x = ttf.apply(tiny(depth=4), blocks=(1, 2)).train(), images()
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    gradients = []
    for run in (model, compiled):
        model.zero_grad()
        run(x).square().sum().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-4, rtol=1e-3)


def test_exported_program_takes_any_batch(compressed: VisionTransformer, images: Images) -> None:
    batch = torch.export.Dim("batch", min=2, max=16)
    program = torch.export.export(compressed, (images(2),), dynamic_shapes=({0: batch},))
    for size in (2, 5):
        x = images(size)
        torch.testing.assert_close(program.module()(x), compressed(x), atol=1e-4, rtol=1e-4)


def test_onnx_runtime_equals_eager(compressed: VisionTransformer, images: Images, tmp_path: Path) -> None:
    for needed in ("onnx", "onnxscript"):
        pytest.importorskip(needed)
    runtime = pytest.importorskip("onnxruntime")
    x, path = images(), tmp_path / "model.onnx"
    torch.onnx.export(compressed.requires_grad_(True), (x,), str(path), dynamo=True, verbose=False)  # as it comes
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (out,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(out), compressed(x).detach(), atol=1e-4, rtol=1e-4)


def test_exported_program_takes_images_of_any_size(tiny: Tiny, images: Images) -> None:
    model = ttf.apply(tiny(depth=4, dynamic_img_size=True), blocks=(1, 2), tau=10.0).requires_grad_(False)
    any_size = torch.export.Dim.AUTO
    program = torch.export.export(model, (images(2),), dynamic_shapes=({0: any_size, 2: any_size, 3: any_size},))
    assert not [node for node in program.graph.nodes if str(node.target).startswith("ttf.")]  # it runs without ttf
    for x in (images(3, 24, 40), images(2, 48, 32)):
        torch.testing.assert_close(program.module()(x), model(x), atol=1e-4, rtol=1e-4)
