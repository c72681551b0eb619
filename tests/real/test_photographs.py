"""The claims of docs/reproduction.md on real weights and photographs, through the command that users call."""

from __future__ import annotations

import json

import pytest

from tests.scripts_under_test import script

pytestmark = [pytest.mark.real, pytest.mark.slow]


@pytest.fixture(scope="module")
def evaluate(shared, tmp_path_factory):
    folder = tmp_path_factory.mktemp("real")

    def run(*overrides: str) -> dict:
        out = folder / "row.json"
        places = [f"paths.imagenet={shared}/data/nips17", f"paths.weights={shared}/weights", f"paths.logs={folder}"]
        places.append(f"paths.results={folder}/results")  # no published rows among them: measured here
        done = script("eval", *places, f"out={out}", *overrides)
        assert done.returncode == 0, done.stderr
        return json.loads(out.read_text())

    return run


def test_uncompressed_top1_on_all_photographs(evaluate):
    row = evaluate("model=vit_ti_augreg", "method=none", "throughput.batch_size=0")
    assert row["images"] == 1000
    assert row["metrics"]["top1"]["value"] == pytest.approx(87.7, abs=1.0)


@pytest.mark.parametrize(("model", "most"), [("vit_ti_augreg", 0.04), ("deit_ti", 0.03)])
def test_the_default_stays_close_at_two_thirds_of_the_cost(evaluate, model, most):
    row = evaluate(f"model={model}", "limit=400", "throughput.batch_size=0")
    assert row["gmacs"] <= 0.84
    assert row["metrics"]["kl"]["value"] <= most


def test_the_literal_equations_lose_more(evaluate):
    literal = evaluate("model=deit_ti", "limit=400", "method=paper", "throughput.batch_size=0")
    default = evaluate("model=deit_ti", "limit=400", "throughput.batch_size=0")
    assert literal["metrics"]["kl"]["value"] > 2 * default["metrics"]["kl"]["value"]
