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


def _small(tiny: Tiny, changes: dict[str, Any] | None = None, **options: Any) -> VisionTransformer:
    """Two blocks that reduce: every block is traced, so each costs seconds."""
    torch.manual_seed(0)
    return ttf.apply(tiny(depth=2, **(changes or {})), blocks=(0, 1), **options)


@pytest.fixture(scope="module", params=CASES.values(), ids=CASES.keys())
def compressed(request: pytest.FixtureRequest, tiny: Tiny) -> VisionTransformer:
    changes, options = request.param
    return _small(tiny, changes, **options).requires_grad_(False)


@pytest.fixture(scope="module")
def program(compressed: VisionTransformer, images: Images) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=2, max=16)
    return torch.export.export(compressed, (images(2),), dynamic_shapes=({0: batch},))


def test_one_graph(compressed: VisionTransformer, images: Images) -> None:
    x = images()
    torch.compiler.reset()
    graph = torch.compile(compressed, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(graph(x), compressed(x), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_compiled_code_equals_eager(tiny: Tiny, images: Images) -> None:
    model, x = _small(tiny, recover=True).requires_grad_(False), images()
    torch.compiler.reset()
    torch.testing.assert_close(torch.compile(model, fullgraph=True)(x), model(x), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_batch_sizes_share_compiled_code(tiny: Tiny, images: Images) -> None:
    model = _small(tiny).requires_grad_(False)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for batch in (2, 5):
            x = images(batch)
            torch.testing.assert_close(compiled(x), model(x), atol=1e-4, rtol=1e-4)


def test_compiled_training_equals_eager(tiny: Tiny, images: Images) -> None:
    model, x = _small(tiny).train(), images()
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    gradients = []
    for run in (model, compiled):
        model.zero_grad()
        run(x).square().sum().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-4, rtol=1e-3)


def test_exported_program_takes_any_batch(
    program: torch.export.ExportedProgram, compressed: VisionTransformer, images: Images
) -> None:
    for size in (2, 5):
        x = images(size)
        torch.testing.assert_close(program.module()(x), compressed(x), atol=1e-4, rtol=1e-4)


def _in_onnx_runtime(model: Any, path: Path, x: Tensor, *others: Tensor) -> list[Tensor]:
    for needed in ("onnx", "onnxscript"):
        pytest.importorskip(needed)
    runtime = pytest.importorskip("onnxruntime")
    torch.onnx.export(model, (x,), str(path), dynamo=True, verbose=False)
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return [torch.from_numpy(session.run(None, {name: each.numpy()})[0]) for each in (x, *others)]


def test_onnx_runtime_equals_eager(tiny: Tiny, images: Images, tmp_path: Path) -> None:
    model, x = _small(tiny), images()  # as it comes, with gradients
    (out,) = _in_onnx_runtime(model, tmp_path / "model.onnx", x)
    torch.testing.assert_close(out, model(x).detach(), atol=1e-4, rtol=1e-4)


def test_onnx_of_an_exported_program_takes_any_batch(
    program: torch.export.ExportedProgram, compressed: VisionTransformer, images: Images, tmp_path: Path
) -> None:
    both = images(2), images(5)
    for x, out in zip(both, _in_onnx_runtime(program, tmp_path / "model.onnx", *both), strict=True):
        torch.testing.assert_close(out, compressed(x), atol=1e-4, rtol=1e-4)


def test_exported_program_takes_images_of_any_size(tiny: Tiny, images: Images) -> None:
    model = _small(tiny, {"dynamic_img_size": True}, tau=10.0).requires_grad_(False)
    any_size = torch.export.Dim.AUTO
    program = torch.export.export(
        model, (images(2, 24, 40),), dynamic_shapes=({0: any_size, 2: any_size, 3: any_size},)
    )
    assert not [node for node in program.graph.nodes if str(node.target).startswith("ttf.")]  # it runs without ttf
    for x in (images(3, 40, 24), images(2, 48, 32)):
        torch.testing.assert_close(program.module()(x), model(x), atol=1e-4, rtol=1e-4)
