"""Fixtures and settings of all tests."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from tests.scripts_under_test import begin_run

torch.set_num_threads(1)
settings.register_profile("ttf", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("ttf")

TINY = {"img_size": 32, "patch_size": 4, "embed_dim": 48, "depth": 12, "num_heads": 3, "num_classes": 10}


SLOW = ("mini", "real", "test_sweep.py", "test_eval_processes.py", "test_mistakes.py", "test_training_processes.py")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """As many as there are cores: a test that waits for a process leaves its core to it."""
    return len(os.sched_getaffinity(0))


def pytest_configure(config: pytest.Config) -> None:
    """The workers of a run have one server of processes between them."""
    if not hasattr(config, "workerinput"):
        config.add_cleanup(begin_run().cleanup)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Files that take long come first on each worker; the first of n gets the first n-th of the tests, and so on."""
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    slow = [file for file in files if any(part in SLOW for part in file.parts)]
    quick = [item for file in files if file not in slow for item in files[file]]
    workers = getattr(config, "workerinput", {}).get("workercount", 1)
    room, left = [], len(items)
    for worker in range(workers):
        own = [item for file in slow[worker::workers] for item in files[file]]
        more = max(0, left // (workers - worker) - len(own))
        room += [*own, *quick[:more]]
        quick, left = quick[more:], len(items) - len(room)
    items[:] = [*room, *quick]


def pytest_collection_finish() -> None:
    """What was imported stays: Python need not look for garbage in it again and again, nor often in what is traced."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def pytest_sessionfinish() -> None:
    gc.unfreeze()  # nanobind complains of what is left at the end


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """The same random weights in every run and in any order of the tests."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder ``shared`` beside the repository root: weights, photographs, golden numbers."""
    folder = Path(__file__).parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("needs ../shared: weights, photographs and golden numbers")
    return folder


def _stir(model: nn.Module) -> nn.Module:
    """Parameters large enough that every part of the model changes its answer; evaluation mode."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.fixture(scope="session")
def stir() -> Callable[[nn.Module], nn.Module]:
    return _stir


@pytest.fixture(scope="session")
def tiny() -> Callable[..., VisionTransformer]:
    """Maker of small, randomly initialised timm ViTs: 64 patches of 32x32 images, width 48, 12 blocks."""

    def make(**changes: object) -> VisionTransformer:
        return _stir(VisionTransformer(**{**TINY, **changes}))

    return make


@pytest.fixture(scope="session")
def images() -> Callable[..., Tensor]:
    """Maker of random images (B, 3, H, W)."""

    def make(batch: int = 2, height: int = 32, width: int | None = None, seed: int = 0) -> Tensor:
        size = (batch, 3, height, width or height)
        return torch.randn(size, generator=torch.Generator().manual_seed(seed))

    return make
