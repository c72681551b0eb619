"""Peak memory of one forward pass, beside the weights."""

from __future__ import annotations

import os
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

MIB = 2**20


def _peak_of_gpu(model: nn.Module, images: Tensor) -> int:
    torch.cuda.synchronize(images.device)
    before = torch.cuda.memory_allocated(images.device)
    torch.cuda.reset_peak_memory_stats(images.device)
    model(images)
    torch.cuda.synchronize(images.device)
    return torch.cuda.max_memory_allocated(images.device) - before


def _peak_of_cpu(model: nn.Module, images: Tensor) -> int:
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler writes its starts and stops to the terminal
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        model(images)
    profiler: Any = recorded.profiler
    changes = [event for event in profiler.kineto_results.events() if event.name() == "[memory]"]
    changes.sort(key=lambda event: event.start_ns())
    return max(accumulate(event.nbytes() for event in changes), default=0)


@torch.inference_mode()
def peak_mib(model: nn.Module, images: Tensor) -> float:
    """The most memory in MiB that a forward pass held at once, beyond weights and images: its activations.

    Counted by torch's own allocator, on the CPU by its profiler; what a library allocates for itself (MKL's buffers)
    is not in it.

    Args:
        model: in evaluation mode; compiled or not.
        images: (B, 3, H, W), on the device of the model.
    """
    model(images)  # what is allocated once, at the first call, is no peak
    measure = _peak_of_gpu if images.device.type == "cuda" else _peak_of_cpu
    return measure(model, images) / MIB
