"""Fig. 4b and 4c, their tables, and pictures of masks, from rows made up here."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ttf.report import dense, masks
from ttf.report.lines import Sources
from ttf.results.measured import read
from ttf.results.store import Store
from ttf.tasks.segmentation import areas, metrics

ROOT = Path(__file__).parents[2]
IMAGES, CLASSES = 12, 3
Sowing = Callable[..., None]


def _outcomes(wrong: int) -> dict[str, Tensor]:
    """Images of 100 pixels a class, of which ``wrong`` and a few more are called the next class."""
    some = torch.arange(IMAGES) % 4 + wrong
    right = torch.eye(CLASSES, dtype=torch.int64) * (100 - some).view(-1, 1, 1)
    called = torch.eye(CLASSES, dtype=torch.int64).roll(1, dims=1) * some.view(-1, 1, 1)
    return {"areas": areas(right + called), "kl": 0.01 * some.float(), "agreement": 1 - some / 100}


@pytest.fixture
def sow(tmp_path: Path) -> Sowing:
    """Write a finished row of an experiment of Fig. 4b."""

    def write(name: str, gmacs: float, wrong: int, ratio: float | None = None, model: str = "segmenter_mini") -> None:
        images = _outcomes(wrong)
        config: dict[str, Any] = {
            "model": {"name": model}, "data": "d", "limit": None, "seed": 0, "dtype": "float32",
            "task": {"dataset": "scenes"}, "method": {"method": "none" if ratio is None else "x"},
        }  # fmt: skip
        config |= {} if ratio is None else {"schedule": {"ratio": ratio}}
        row = {
            "id": f"{name}{gmacs:.0f}", "config": config, "experiments": [f"fig4b/{name}"], "metrics": metrics(images),
            "gmacs": gmacs, "images": IMAGES, "tokens": [{"block": 4, "tokens": 70.0}],
        }  # fmt: skip
        Store(tmp_path / "runs").finish(f"{name}{gmacs:.0f}", row, images)

    return write


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    return Sources(str(tmp_path / "runs"), str(ROOT / "results" / "paper"), ROOT / "configs" / "experiment")


@pytest.fixture
def entry(sow: Sowing, sources: Sources) -> dense.Dense:
    sow("none", 10.0, wrong=5)
    sow("evit", 7.0, wrong=12, ratio=0.7)
    sow("evit", 5.0, wrong=30, ratio=0.5)
    sow("ours_default", 7.0, wrong=6, ratio=0.7)
    return dense.gather("fig4b", ["segmenter_mini"], sources, [])[0]


def test_lines_have_budgets_drops_and_titles(entry: dense.Dense):
    cells = dense.table(entry)
    by_name = {(line[0], line[1]): line for line in cells[1:]}
    assert list(by_name) == [
        ("uncompressed", ""), ("ours (default)", "0.7 at 4"), ("EViT", "0.5 at 4"), ("EViT", "0.7 at 4"),
    ]  # fmt: skip
    assert [line[3] for line in by_name.values()] == ["100.0", "70.0", "50.0", "70.0"]
    assert by_name["uncompressed", ""][5] == ""
    drops = {name: float(line[5].split()[0]) for name, line in by_name.items() if line[5]}
    assert 0 < drops["ours (default)", "0.7 at 4"] < drops["EViT", "0.7 at 4"] < drops["EViT", "0.5 at 4"]


def test_drops_are_paired(sow: Sowing, sources: Sources):
    """Every image is worse by about as much: the drop is far more certain than either mIoU."""
    sow("none", 10.0, wrong=5)
    sow("evit", 7.0, wrong=6, ratio=0.7)
    base, other = sorted(read(sources.runs), key=lambda m: -m.gmacs)
    value, (low, high) = dense.drop(base, other)
    assert low <= value <= high
    width = base.interval("miou")[1] - base.interval("miou")[0]
    assert high - low < width / 10
    assert dense.drop(base, base) == (0.0, (0.0, 0.0))


def test_other_models_and_experiments_are_left_out(entry: dense.Dense, sow: Sowing, sources: Sources):
    sow("evit", 8.0, wrong=1, ratio=0.8, model="segmenter_ti_camvid")
    assert len(dense.gather("fig4b", ["segmenter_mini"], sources, [])[0].curves["EViT"]) == 2
    with pytest.raises(ValueError, match="no rows of fig4c for segmenter_mini in .*: run make fig4c first"):
        dense.gather("fig4c", ["segmenter_mini"], sources, [])


def test_published_and_counted_lines_need_no_rows(sources: Sources, tmp_path: Path):
    counted = [
        {"experiment": "fig4b/none", "title": "uncompressed", "model": "segmenter_l", "ratio": "", "blocks": "",
         "gmacs": "671.0732"},
        {"experiment": "fig4b/ours_literal", "title": "ours (literal)", "model": "segmenter_l", "ratio": "0.7",
         "blocks": "", "gmacs": "480.3506"},
    ]  # fmt: skip
    found = dense.gather("fig4b", ["segmenter_l"], sources, counted)[0]
    lines = {(line[0], line[1]): line for line in dense.table(found)[1:]}
    assert lines["ours (literal), counted", "0.7 at default blocks"][2:4] == ["480.35", "71.6"]
    assert lines["EViT, published", "keep ratio 0.5"][2:6] == ["351.83", "53.4", "38.89", "12.93"]
    dense.figure([found], tmp_path / "fig.png")
    assert Image.open(tmp_path / "fig.png").width > 400


def test_what_was_only_counted_stands_at_the_edge(sources: Sources, monkeypatch: pytest.MonkeyPatch):
    line = {"title": "ours (default)", "model": "segmenter_l", "ratio": "0.7", "blocks": "", "gmacs": "481.7"}
    (panel,) = _axes(monkeypatch, dense.gather("fig4b", ["segmenter_l"], sources, [line])[0])
    (ticks,) = [drawn for drawn in panel.lines if drawn.get_label() == "ours (default), counted"]
    assert ticks.get_xdata() == [481.7] and ticks.get_ydata()[0] < 0.1


def test_published_points_belong_to_the_large_model_alone(entry: dense.Dense):
    assert not entry.published


def _axes(monkeypatch: pytest.MonkeyPatch, entry: dense.Dense) -> list[Any]:
    """The panels of the figure, which is not written."""
    found: list[Any] = []
    monkeypatch.setattr(dense, "save", lambda drawing, _: found.append(drawing))
    dense.figure([entry], Path("unused.png"))
    return found[0].axes


def test_curves_stand_at_their_budgets_with_intervals(entry: dense.Dense, monkeypatch: pytest.MonkeyPatch):
    left, right = _axes(monkeypatch, entry)
    curves = {container.get_label(): container for container in left.containers}
    assert curves["EViT"].lines[0].get_xdata().tolist() == [5.0, 7.0]
    ends = curves["EViT"].lines[2][0].get_segments()[1][:, 1]
    assert entry.base is not None
    _, (low, high) = dense.drop(entry.base, entry.curves["EViT"][1])
    assert ends.tolist() == pytest.approx([entry.base.value("miou") - high, entry.base.value("miou") - low])
    assert right.get_yscale() == "log"


def test_published_points_are_hollow(sources: Sources, monkeypatch: pytest.MonkeyPatch):
    (panel,) = _axes(monkeypatch, dense.gather("fig4c", ["segmenter_l_cityscapes"], sources, [])[0])
    points = {line.get_label(): line for line in panel.lines}
    ours = points["ours, published"]
    assert (ours.get_xdata()[0], ours.get_ydata()[0]) == (691.0, 78.8)
    assert all(line.get_markerfacecolor() == "none" for line in points.values())


@pytest.mark.parametrize("name", dense.FIGURES)
def test_published_lines_are_whole(name: str):
    with (ROOT / "results" / "paper" / f"{name}.csv").open() as file:
        lines = list(csv.DictReader(file))
    base = lines[0]
    assert base["method"] == "uncompressed"
    assert all(float(line["gmacs"]) < float(base["gmacs"]) and 0 < float(line["miou"]) < 100 for line in lines[1:])


PALETTE = ((10, 20, 30), (200, 0, 0), (0, 0, 200))


def test_masks_have_the_colours_of_the_data_set():
    pixels = masks.coloured(torch.tensor([[0, 2], [255, 1]]), PALETTE)
    assert (pixels * 255).round().tolist() == [[[10, 20, 30], [0, 0, 200]], [[255, 255, 255], [200, 0, 0]]]


def test_ignored_pixels_do_not_differ():
    ours, truth = torch.tensor([[0, 1, 2]]), torch.tensor([[0, 2, 255]])
    assert masks.differing(ours, truth).tolist() == [[False, True, False]]


def test_the_picture_says_how_much_differs(monkeypatch: pytest.MonkeyPatch):
    base = torch.zeros(4, 8, dtype=torch.int64)
    moved = base.clone()
    moved[0] = 1
    photograph = Image.fromarray(np.full((4, 8, 3), 90, np.uint8))
    example = masks.Example(photograph, torch.ones_like(base), base, {"EViT": moved})
    found: list[Any] = []
    monkeypatch.setattr(masks, "save", lambda drawing, _: found.append(drawing))
    masks.figure([example, example], ("a", "b", "c"), PALETTE, Path("unused.png"))
    titles = [axes.get_title() for axes in found[0].axes]
    once = ["image", "uncompressed", "EViT", "ground truth", "wrong: 100.0 %", "differs in 25.0 %"]
    assert titles == once * 2
    assert [text.get_text() for text in found[0].legends[0].get_texts()] == ["a", "b"]
    red = found[0].axes[5].images[0].get_array()
    assert np.allclose(red[0], masks.MARKED) and not np.allclose(red[1], masks.MARKED)
