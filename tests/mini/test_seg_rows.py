"""Fig. 4b, 4c and masks end to end on scenes, with a Segmenter of random weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from PIL import Image
from torch import nn

from ttf import experiments
from ttf.bench.counting import counted
from ttf.models.vit_mini import segmenter_mini
from ttf.models.weights import save_weights
from ttf.report import budgets, curves, masks
from ttf.results.measured import read
from ttf.results.store import Row
from ttf.tasks.masks import examples

ROOT = Path(__file__).parents[2]
EVERY = "blocks=[0,1,2,3,4,5,6,7,8,9,10,11]"
WAYS = {
    "ours_literal": [],
    "ours_masks": [],
    "ours_default": [],
    "ours_transpose": [],
    "hourglass_10": ["blocks=[4]"],
    "evit": ["ratio=0.7", "blocks=[3,6,9]"],
    "tome_dense": ["ratio=0.7", EVERY],
}

Evaluate = Callable[..., Row]
Configured = Callable[..., DictConfig]


@pytest.fixture
def mini(tmp_path: Path, stir: Callable[[nn.Module], nn.Module]) -> list[str]:
    """Overrides that evaluate a random model on a few scenes."""
    path = tmp_path / "segmenter_mini.safetensors"
    save_weights(stir(segmenter_mini()), path)
    return ["model=segmenter_mini", "limit=4", f"checkpoint={path}"]


def test_every_line_of_the_figure_runs_offline(mini: list[str], evaluate: Evaluate, tmp_path: Path):
    every: dict[str, list[str]] = {"none": [], **WAYS}
    rows = {name: evaluate(f"experiment=fig4b/{name}", *mini, *given) for name, given in every.items()}
    base = rows["none"]
    assert rows["none"]["metrics"]["kl"]["value"] == 0
    for name, row in rows.items():
        if name != "none":
            assert row["gmacs"] < 0.9 * base["gmacs"] and row["metrics"]["kl"]["value"] > 0
    assert rows["ours_masks"]["gmacs"] < rows["ours_literal"]["gmacs"]  # a shorter decoder
    measured = read(f"{tmp_path}/rows", f"{tmp_path}/runs")
    (entry,) = budgets.gather(experiments.load("fig4b"), measured, ["segmenter_mini"])
    assert len(entry.methods) == len(WAYS) and len(budgets.cells(entry)) == 2 + len(WAYS)
    curves.against_gmacs([entry], tmp_path / "fig4b.png")
    assert Image.open(tmp_path / "fig4b.png").width > 800


@pytest.mark.parametrize("name", ["ours_masks", "hourglass_10", "tome_dense"])
def test_costs_are_counted_without_weights_as_on_images(
    name: str, mini: list[str], evaluate: Evaluate, configured: Configured
):
    row = evaluate(f"experiment=fig4b/{name}", *mini, *WAYS[name], "limit=1")
    line = counted(configured(f"experiment=fig4b/{name}", "model=segmenter_mini", *WAYS[name]))
    assert line["gmacs"] == pytest.approx(row["gmacs"], abs=1e-4)
    assert (line["experiment"], line["model"]) == (f"fig4b/{name}", "segmenter_mini")


def test_the_same_run_serves_both_figures(mini: list[str], evaluate: Evaluate):
    first = evaluate("experiment=fig4b/ours_default", *mini)
    second = evaluate("experiment=fig4c/ours_default", *mini)
    assert first["id"] == second["id"]
    assert [one["name"] for one in second["experiments"]] == ["fig4b/ours_default", "fig4c/ours_default"]


def test_what_needs_images_cannot_be_counted(configured: Configured):
    with pytest.raises(ValueError, match="its number of tokens depends on the image"):
        counted(configured("experiment=fig4b/ours_default", "model=segmenter_mini", "method=ats"))


def test_masks_side_by_side(mini: list[str], tmp_path: Path):
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        cfg = compose("masks", mini)
        shown, data = examples(cfg, [0, 2])
        with pytest.raises(ValueError, match=r"no image at \[4\]: there are 4, from 0 on"):
            examples(cfg, [4])
        cfg.ways = ["fig4b/none"]
        with pytest.raises(ValueError, match="fig4b/none has no picture of its own"):
            examples(cfg, None)
    assert list(shown[0].predictions) == ["ours (default)", "Hourglass, temperature 2", "EViT", "ToMe"]
    assert all(labels.shape == (96, 96) for labels in shown[0].predictions.values())
    assert not torch.equal(shown[0].truth, shown[1].truth)
    masks.figure(shown, data.classes, data.palette, tmp_path / "masks.png")
    assert Image.open(tmp_path / "masks.png").width > 800


def test_the_embedded_segmenter_knows_its_scenes(evaluate: Evaluate):
    base = evaluate("experiment=fig4b/none", "model=segmenter_mini", "limit=60")
    ours = evaluate("experiment=fig4b/ours_default", "model=segmenter_mini", "limit=60", "ratio=0.8")
    assert base["metrics"]["miou"]["value"] > 55
    assert ours["gmacs"] < 0.9 * base["gmacs"]
    assert ours["metrics"]["agreement"]["value"] > 90
