"""Table 3 end to end: on scenes with a DPT of random weights, and on NYUv2 in each of its layouts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hydra import initialize_config_dir
from omegaconf import DictConfig
from PIL import Image
from torch import nn

from tests.composing import CONFIGS, composed
from tests.depth_frames import LAYOUTS
from ttf import experiments
from ttf.bench.counting import counted
from ttf.data.depth_protocol import ERRORS
from ttf.models.dpt import dpt_ti
from ttf.models.vit_mini import dpt_mini
from ttf.models.weights import save_weights
from ttf.report import budgets
from ttf.results.measured import read
from ttf.results.store import Row
from ttf.tasks.depth_maps import picture
from ttf.tasks.run import execute

WAYS = {
    "ours_default": ["ratio=0.7", "blocks=[4,7,10]"],
    "ours_reassembled": ["ratio=0.7", "blocks=[4,7,10]"],
    "ours_literal": ["ratio=0.7", "blocks=[4,7,10]"],
    "hourglass": ["ratio=0.4901", "blocks=[4]"],
    "evit": ["ratio=0.7", "blocks=[3,6,9]"],
    "tome_dense": ["ratio=0.7"],
}
HYBRID = ["task=depth", "model=dpt_hybrid", "ratio=0.25", "blocks=[2]"]

Evaluate = Callable[..., Row]
Configured = Callable[..., DictConfig]


@pytest.fixture
def mini(tmp_path: Path, stir: Callable[[nn.Module], nn.Module]) -> list[str]:
    """Overrides that evaluate a random model on a few scenes."""
    path = tmp_path / "dpt_mini.safetensors"
    save_weights(stir(dpt_mini()), path)
    return ["model=dpt_mini", "limit=4", f"checkpoint={path}"]


def test_every_line_of_the_table_runs_offline(mini: list[str], evaluate: Evaluate, tmp_path: Path):
    every: dict[str, list[str]] = {"none": [], **WAYS}
    rows = {name: evaluate(f"experiment=table3/{name}", *mini, *given) for name, given in every.items()}
    assert set(rows["none"]["metrics"]) == {*ERRORS, "deviation"}
    assert rows["none"]["metrics"]["deviation"]["value"] == 0
    for name in WAYS:
        assert rows[name]["gmacs"] < rows["none"]["gmacs"] and rows[name]["metrics"]["deviation"]["value"] > 0
    literal, later = rows["ours_literal"], rows["ours_reassembled"]
    assert later["gmacs"] < literal["gmacs"] and later["config"]["recover_at"] == "reassembled"
    assert later["metrics"]["abs_rel"]["value"] == pytest.approx(literal["metrics"]["abs_rel"]["value"], rel=1e-4)
    measured = read(f"{tmp_path}/rows", f"{tmp_path}/runs")
    (entry,) = budgets.gather(experiments.load("table3"), measured, ["dpt_mini"])
    head, *lines = budgets.cells(entry)
    assert {"AbsRel [95 %]", "δ1", "RMSE", "log10", "GMACs"} <= {*head} and len(lines) == 1 + len(WAYS)


def test_costs_are_counted_without_weights_as_on_images(mini: list[str], evaluate: Evaluate, configured: Configured):
    given = WAYS["ours_literal"]
    row = evaluate("experiment=table3/ours_literal", *mini, *given, "limit=1")
    line = counted(configured("experiment=table3/ours_literal", "model=dpt_mini", *given))
    assert line["gmacs"] == pytest.approx(row["gmacs"], abs=1e-4)


def test_the_paper_is_quoted_with_all_its_errors():
    (entry,) = budgets.gather(experiments.load("table3"), [])
    head, *lines = budgets.cells(entry)
    ours = dict(zip(head, lines[-1], strict=True))
    assert (ours[""], ours["δ1"], ours["SILog"], ours["AbsRel [95 %]"]) == (
        "ours, published",
        "0.901",
        "9.536",
        "0.108",
    )
    assert ours["rise [95 %]"] == "-0.0020" and ours["% of uncompressed"] == "71.4"


def test_without_data_the_user_is_told_what_to_fetch(configured: Configured, tmp_path: Path):
    with pytest.raises(
        ValueError, match=r"no NYUv2 at .*set paths\.nyuv2=ROOT; fetch http\S+nyu_depth_v2_labeled\.mat"
    ):
        execute(configured(*HYBRID, f"paths.nyuv2={tmp_path}/nowhere"))


@pytest.mark.parametrize("make", LAYOUTS)
def test_two_images_of_nyuv2(
    make: Callable[[Path], None], configured: Configured, tmp_path: Path, stir: Callable[[nn.Module], nn.Module]
):
    folder, weights = tmp_path / "nyuv2", tmp_path / "small.safetensors"
    folder.mkdir()
    make(folder)
    save_weights(stir(dpt_ti(img_size=(96, 128))), weights)
    small = ["model.inference.height=96", "model.inference.width=128", "model.network._target_=ttf.models.dpt.dpt_ti"]
    network = [*small, "+model.network.img_size=[96,128]", f"checkpoint={weights}", f"paths.nyuv2={folder}"]
    row = execute(configured(*HYBRID, *network))
    assert row["images"] == 2 and row["preprocessing"]["protocol"]["crop"] == "eigen"
    assert [layer["block"] for layer in row["tokens"]] == [2] and 0 < row["metrics"]["abs_rel"]["value"] < 10


def test_predictions_as_pictures_and_as_png(mini: list[str], tmp_path: Path):
    """Each method a column: depth, error, tokens; and 16-bit PNGs of all of them."""
    cfg = composed(
        "visualize", "task=depth", *mini, "pick=[2]", f"depth_png={tmp_path}/png",
        'ways=["table3/evit ratio=0.5 blocks=[3,6,9]","table3/tome_dense ratio=0.7"]',
    )  # fmt: skip
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        written = picture(cfg, tmp_path / "depth.png", cfg.pick)
    assert [path.name for path in written] == ["depth.png", *(f"{p}_{way}.png" for p in (2,) for way in range(3))]
    stored = [np.asarray(Image.open(path)) for path in written[1:]]
    assert all(one.shape == (96, 96) and one.dtype == np.uint16 for one in stored)
    assert not np.array_equal(stored[0], stored[1]) and abs(stored[0].mean() - 1000 * 5) < 4000
    (tmp_path / "png" / "2_0.png").write_text("mine")
    there = initialize_config_dir(CONFIGS, version_base="1.3")
    with there, pytest.raises(ValueError, match="not a depth map"):
        picture(cfg, tmp_path / "depth.png", cfg.pick)
