"""The ways to run a model that are timed: eager, compiled in three ways, as one CUDA graph, and ONNX Runtime."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

COMPILED = {"compiled": "default", "autotune": "max-autotune", "graphs": "reduce-overhead"}  # mode of torch.compile
CAPTURED = {"captured": None, "compiled_captured": "compiled"}  # a pass as one CUDA graph; what is captured
MODES = ("eager", *COMPILED, *CAPTURED, "onnx")
ON_GPUS = ("graphs", *CAPTURED)
EXTRA = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 0.01  # of the largest output: above it the exported model is another model


def check(modes: list[str], device: torch.device, dtype: str) -> None:
    """Raise ``ValueError`` for modes that are unknown, or that cannot be timed on this device, dtype or install."""
    unknown = [mode for mode in modes if mode not in MODES]
    if unknown or not modes:
        raise ValueError(f"modes must be some of {', '.join(MODES)}, got {modes}")
    graphs = [mode for mode in modes if mode in ON_GPUS]
    if graphs and device.type != "cuda":
        raise ValueError(f"modes=[{','.join(graphs)}] are CUDA graphs and need a GPU: use modes=[compiled] here")
    if "onnx" not in modes:
        return
    if device.type != "cpu" or dtype != "float32":
        raise ValueError("modes=[onnx] runs ONNX Runtime on a CPU in float32: use device=cpu dtype=float32")
    missing = [name for name in EXTRA if find_spec(name) is None]
    if missing:
        raise ValueError(f"modes=[onnx] needs {', '.join(missing)}: install the extra, pip install 'ttf[onnx]'")


def holds_memory(mode: str, device: torch.device) -> bool:
    """Whether torch's allocator cannot tell the peak of one pass: memory is ONNX Runtime's, or that of a CUDA graph."""
    return mode == "onnx" or (mode in ("autotune", *ON_GPUS) and device.type == "cuda")


class Captured(nn.Module):
    """Forward passes on one batch as a CUDA graph: all kernels of a pass are launched at once.

    Args:
        model: in evaluation mode.
        images: (B, 3, H, W); every call runs on these again.
    """

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        super().__init__()
        aside, here = torch.cuda.Stream(), torch.cuda.current_stream()
        aside.wait_stream(here)
        with torch.cuda.stream(aside):  # what is compiled or allocated at a first call cannot be captured
            for _ in range(3):
                model(images)
        here.wait_stream(aside)
        self._model, self._images, self._graph = model, images, torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._answer = model(images)

    def forward(self, images: Tensor) -> Tensor:
        """The answer for the images that it was captured with, in memory that the next call writes anew."""
        assert images is self._images
        self._graph.replay()
        return self._answer


class Exported(nn.Module):
    """A model as ONNX Runtime runs it on the CPU, with as many threads as torch has.

    Args:
        file: ONNX model with one input and one output.

    Attributes:
        error: largest absolute difference to torch's answer on the images that it was exported with.
    """

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.error = 0.0
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # its warnings are about the graph, not for a user
        self._session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) of the exported size to what the model gives."""
        return torch.from_numpy(self._session.run(None, {self._input: x.numpy()})[0])


def _reason(error: Exception) -> str:
    """The first line of the cause at the root: exporters wrap it in advice."""
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).strip() or 'no reason given'}".splitlines()[0][:200]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter tells about every pass over its graph."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _stable_sort() -> dict[Callable[..., Any], Callable[..., Any]]:
    """``torch.sort(stable=True)``, which the exporter lacks: of equal values TopK gives the lower index first."""
    from onnxscript import opset18

    operators: Any = opset18

    def sort(x: Any, stable: bool | None = None, dim: int = -1, descending: bool = False) -> Any:
        size = operators.Gather(operators.Shape(x), operators.Constant(value_ints=[dim]), axis=0)
        return operators.TopK(x, size, axis=dim, largest=int(descending), sorted=1)

    return {torch.ops.aten.sort.stable: sort}


def _exported(model: nn.Module, images: Tensor) -> Exported:
    with _quiet(), tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        table = _stable_sort()
        torch.onnx.export(model, (images,), str(file), dynamo=True, verbose=False, custom_translation_table=table)
        exported = Exported(file)
    expected = model(images)
    exported.error = (exported(images) - expected).abs().max().item()
    if not exported.error <= TOLERANCE * expected.abs().max().item():
        raise ValueError(f"the exported model answers otherwise than torch, by {exported.error:.1e}")
    return exported


def ready(model: nn.Module, mode: str, images: Tensor, name: str) -> nn.Module:
    """The model as it is timed in a mode.

    Args:
        model: in evaluation mode.
        mode: one of ``MODES``.
        images: (B, 3, H, W) as they are timed: compiled and exported code is for this shape.
        name: of the model, for the message.

    Raises:
        ValueError: it cannot be compiled or exported here; the message gives the reason.
    """
    if mode == "eager":
        return model
    try:
        with torch.inference_mode(mode != "onnx"), torch.no_grad():
            if mode == "onnx":
                return _exported(model, images)
            if mode in CAPTURED:
                inner = CAPTURED[mode]
                return Captured(ready(model, inner, images, name) if inner else model, images)
            compiled: Any = torch.compile(model, dynamic=False, mode=COMPILED[mode])
            compiled(images)
            return compiled
    except Exception as error:  # dynamo, inductor, exporters and the compilers that they call raise many
        what = {"onnx": "torch.onnx.export", "captured": "a CUDA graph"}.get(mode, "torch.compile")
        raise ValueError(f"{what} fails on {name} here ({_reason(error)}): leave out modes=[{mode}]") from error
