"""Top-1 while training, over all processes."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ttf.training.data import evaluation_batches


@torch.no_grad()
def correct(model: nn.Module, data: Any, engine: Accelerator, batch_size: int = 100, workers: int = 0) -> Tensor:
    """Which images of ``data`` the model (set to evaluation here) classifies correctly, in float32.

    Every process takes each so-manieth image; all get the answer.

    Returns:
        (n,) bool, on the CPU, in the order of the data.
    """
    model.eval()
    mine = range(engine.process_index, len(data), engine.num_processes)
    right, done = torch.zeros(len(data), device=engine.device), 0
    for images, labels, *_ in evaluation_batches(data, mine, batch_size, workers):
        hits = model(images.to(engine.device)).argmax(1) == labels.to(engine.device)
        right[torch.tensor(mine[done : done + len(hits)])] = hits.float()
        done += len(hits)
    return engine.reduce(right, "sum").bool().cpu()


def percent(right: Tensor) -> float:
    """Top-1 in percent of (n,) bool."""
    return 100 * right.double().mean().item()
