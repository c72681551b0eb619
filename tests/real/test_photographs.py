"""What docs/reproduction.md claims of real weights and photographs: published, and measured again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.scripts_under_test import ROOT, script
from ttf.results.measured import Measured, read

pytestmark = [pytest.mark.real, pytest.mark.slow]

AGAIN = 100  # images of the seeded shuffle that are measured again
SAME_TOP1 = 0.98  # share of images: a tie within rounding may fall otherwise on another processor
RUNS = {
    ("vit_ti_augreg", "none"): "readings/none",
    ("vit_ti_augreg", "token_transform"): "readings/default",
    ("deit_ti", "token_transform"): "readings/default",
    ("deit_ti", "paper"): "readings/literal",
}


@pytest.fixture(scope="module")
def published() -> Callable[[str, str], Measured]:
    """The published row of an experiment and a model, on all photographs."""
    rows = read(ROOT / "results" / "rows", ROOT / "nowhere")

    def find(model: str, experiment: str) -> Measured:
        named = (row for row in rows if any(one["name"] == experiment for one in row.experiments))
        (found,) = (row for row in named if row.model == model and row.count == 1000)
        return found

    return find


@pytest.fixture(scope="module")
def evaluate(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Tensor]]:
    folder = tmp_path_factory.mktemp("real")

    def run(*overrides: str) -> dict[str, Tensor]:
        out = folder / "row.json"
        places = [f"paths.imagenet={shared}/data/nips17", f"paths.weights={shared}/weights", f"paths.logs={folder}"]
        places.append(f"paths.results={folder}/results")  # no published rows among them: measured here
        done = script("eval", *places, f"out={out}", f"limit={AGAIN}", "throughput.batch_size=0", *overrides)
        assert done.returncode == 0, done.stderr
        row: dict[str, Any] = json.loads(out.read_text())
        assert row["images"] == AGAIN
        return load_file(folder / "runs" / f"{row['id']}.images.safetensors")

    return run


@pytest.mark.parametrize(("model", "method"), RUNS)
def test_published_outcomes_are_measured_again(model: str, method: str, published, evaluate) -> None:
    before = {name: values[:AGAIN] for name, values in published(model, RUNS[model, method]).images.items()}
    again = evaluate(f"model={model}", f"method={method}")
    assert (again["top1"] == before["top1"]).float().mean() >= SAME_TOP1
    torch.testing.assert_close(again["kl"].mean(), before["kl"].mean(), rtol=0.02, atol=1e-6)


def test_claims(published) -> None:
    def value(model: str, experiment: str, name: str) -> float:
        return published(model, experiment).row["metrics"][name]["value"]

    assert value("vit_ti_augreg", "readings/none", "top1") == pytest.approx(87.7, abs=1.0)
    for model, most in (("vit_ti_augreg", 0.04), ("deit_ti", 0.03)):
        assert published(model, "readings/default").gmacs <= 0.84
        assert value(model, "readings/default", "kl") <= most
    assert value("deit_ti", "readings/literal", "kl") > 2 * value("deit_ti", "readings/default", "kl")
