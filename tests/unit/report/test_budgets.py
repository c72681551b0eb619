"""Fig. 4b and 4c, their tables, and pictures of masks, from rows made up here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.unit.made_up_rows import row, table
from ttf import experiments
from ttf.metrics import headline, named
from ttf.report import Options, boxes, budgets, curves, depth_maps, masks, render
from ttf.report.budgets import Curves
from ttf.results.measured import Measured
from ttf.tasks.segmentation import areas

IMAGES, CLASSES = 12, 3
TITLES = {"none": "uncompressed", "evit": "EViT", "ours_default": "ours (default)"}
SPEC = table("fig4b", "dense", TITLES)


def _outcomes(wrong: int) -> dict[str, Tensor]:
    """Images of 100 pixels a class, of which ``wrong`` and a few more are called the next class."""
    some = torch.arange(IMAGES) % 4 + wrong
    right = torch.eye(CLASSES, dtype=torch.int64) * (100 - some).view(-1, 1, 1)
    called = torch.eye(CLASSES, dtype=torch.int64).roll(1, dims=1) * some.view(-1, 1, 1)
    return {"areas": areas(right + called), "kl": 0.01 * some.float(), "agreement": 1 - some / 100}


def grown(name: str, gmacs: float, wrong: int, ratio: float | None = None, model: str = "segmenter_mini") -> Measured:
    """A row of an experiment of Fig. 4b."""
    method = None if ratio is None else {"class": "EViT"}
    schedule = None if ratio is None else {"class": "KeepRatio", "ratio": ratio}
    given = {"gmacs": gmacs, "experiments": [f"fig4b/{name}"], "model": model}
    return row(f"{name}{gmacs:.0f}", _outcomes(wrong), "seg", method=method, schedule=schedule, **given)


@pytest.fixture
def rows() -> list[Measured]:
    return [
        grown("none", 10.0, wrong=5),
        grown("evit", 7.0, wrong=12, ratio=0.7),
        grown("evit", 5.0, wrong=30, ratio=0.5),
        grown("ours_default", 7.0, wrong=6, ratio=0.7),
    ]


@pytest.fixture
def entry(rows: list[Measured]) -> Curves:
    return budgets.gather(SPEC, rows, ["segmenter_mini"])[0]


def test_lines_have_budgets_drops_and_titles(entry: Curves):
    cells = budgets.cells(entry)
    by_name = {(line[0], line[1]): line for line in cells[1:]}
    assert list(by_name) == [
        ("uncompressed", ""),
        ("ours (default)", "0.7 at 4"),
        ("EViT", "0.5 at 4"),
        ("EViT", "0.7 at 4"),
    ]
    assert [line[3] for line in by_name.values()] == ["100.0", "70.0", "50.0", "70.0"]
    assert by_name["uncompressed", ""][5] == ""
    drops = {name: float(line[5].split()[0]) for name, line in by_name.items() if line[5]}
    assert 0 < drops["ours (default)", "0.7 at 4"] < drops["EViT", "0.7 at 4"] < drops["EViT", "0.5 at 4"]


def test_drops_are_paired():
    """Every image is worse by about as much: the drop is far more certain than either mIoU."""
    base, other, miou = grown("none", 10.0, wrong=5), grown("evit", 7.0, wrong=6, ratio=0.7), headline("seg")
    lost = miou.lost_between(base.images, other.images)
    assert lost is not None and lost.low <= lost.value <= lost.high
    assert lost.value == pytest.approx(base.value("miou") - other.value("miou"))
    whole = base.estimate(miou)
    assert lost.high - lost.low < (whole.high - whole.low) / 10
    none = miou.lost_between(base.images, base.images)
    assert none is not None and (none.value, none.low, none.high) == (0, 0, 0)


def test_other_models_and_experiments_are_left_out(rows: list[Measured]):
    rows.append(grown("evit", 8.0, wrong=1, ratio=0.8, model="segmenter_ti_camvid"))
    assert len(budgets.gather(SPEC, rows, ["segmenter_mini"])[0].methods["EViT"]) == 2
    with pytest.raises(ValueError, match="no rows of fig4c for segmenter_mini: ttf sweep table=fig4c"):
        budgets.gather(table("fig4c", "dense", TITLES), rows, ["segmenter_mini"])


def counted(title: str, gmacs: str, ratio: str = "0.7", blocks: str = "") -> Mapping[str, str]:
    return {"title": title, "model": "segmenter_l", "ratio": ratio, "blocks": blocks, "gmacs": gmacs}


def published(figure: str, model: str, lines: list[Any]) -> Curves:
    return budgets.gather(experiments.load(figure), [], [model], lines)[0]


def test_published_and_counted_lines_need_no_rows(tmp_path: Path):
    costs = [counted("uncompressed", "671.0732", ratio=""), counted("ours (literal)", "480.3506")]
    costs.append(counted("ToMe", "500", blocks=str(list(range(24)))))
    found = published("fig4b", "segmenter_l", costs)
    lines = {(line[0], line[1]): line for line in budgets.cells(found)[1:]}
    assert lines["ours (literal), counted", "0.7 at default blocks"][2:4] == ["480.35", "71.6"]
    assert lines["ToMe, counted", "0.7 at every block"][2:4] == ["500.00", "74.5"]
    assert lines["EViT, published", "keep ratio 0.5"][2:6] == ["351.83", "53.4", "38.89", "12.93"]
    curves.against_gmacs([found], tmp_path / "fig.png")
    assert Image.open(tmp_path / "fig.png").width > 400


def test_no_picture_without_a_point(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Table 5's published lines have no GMACs: a table, and a line in place of its two figures."""
    found = render(experiments.load("table5"), [], Options(tmp_path, ["llava_1_5_7b"], "_paper", show=False))
    assert [path.name for path in found] == ["table5_paper.md"] and not (tmp_path / "figures").exists()
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in said] == ["no figure table5_paper", "no figure table5_tokens_paper"]


def test_what_was_only_counted_stands_at_the_edge(monkeypatch: pytest.MonkeyPatch):
    (panel,) = _axes(monkeypatch, published("fig4b", "segmenter_l", [counted("ours (default)", "481.7")]))
    (ticks,) = [drawn for drawn in panel.lines if drawn.get_label() == "ours (default), counted"]
    assert ticks.get_xdata() == [481.7] and ticks.get_ydata()[0] < 0.1


def test_published_points_belong_to_the_large_model_alone(entry: Curves):
    assert not entry.published


def _axes(monkeypatch: pytest.MonkeyPatch, entry: Curves, **options: Any) -> list[Any]:
    """The panels of the figure, which is not written."""
    found: list[Any] = []
    monkeypatch.setattr(curves, "save", lambda drawing, _: found.append(drawing))
    curves.against_gmacs([entry], Path("unused.png"), **options)
    return [axes for axes in found[0].axes if axes.get_ylabel()]


def test_curves_stand_at_their_budgets(entry: Curves, monkeypatch: pytest.MonkeyPatch):
    left, right = _axes(monkeypatch, entry)
    lines = {line.get_label(): line for line in left.lines}
    assert lines["EViT"].get_xdata().tolist() == [5.0, 7.0]
    assert lines["EViT"].get_ydata().tolist() == pytest.approx([m.value("miou") for m in entry.methods["EViT"]])
    assert left.get_ylabel() == "mIoU, % (bands: of the drop)" and right.get_yscale() == "log"


def test_the_headline_against_another_metric(entry: Curves, monkeypatch: pytest.MonkeyPatch):
    (panel,) = _axes(monkeypatch, entry, across="kl")
    lines = {line.get_label(): line for line in panel.lines}
    assert lines["EViT"].get_xdata().tolist() == pytest.approx([m.value("kl") for m in entry.methods["EViT"]])
    assert panel.get_xlabel() == named("seg", "kl").axis and panel.get_ylabel() == "mIoU, % (bands: of the drop)"


def test_the_legend_explains_a_title(entry: Curves, monkeypatch: pytest.MonkeyPatch):
    (left, _) = _axes(monkeypatch, entry, notes={"EViT": "as published"})
    (legend,) = left.figure.legends
    assert [text.get_text() for text in legend.texts] == ["ours (default)", "EViT:\nas published"]


def test_published_points_are_hollow(monkeypatch: pytest.MonkeyPatch):
    (panel,) = _axes(monkeypatch, published("fig4c", "segmenter_l_cityscapes", []))
    points = {line.get_label(): line for line in panel.lines}
    ours = points["ours, published"]
    assert (ours.get_xdata()[0], ours.get_ydata()[0]) == (691.0, 78.8)
    assert all(line.get_markerfacecolor() == "none" for line in points.values())


@pytest.mark.parametrize("name", ["fig4b", "fig4c"])
def test_published_lines_are_whole(name: str):
    base, *lines = [row.paper for row in experiments.load(name).rows if row.paper]
    assert base["method"] == "uncompressed"
    assert all(line["gmacs"] < base["gmacs"] and 0 < line["miou"] < 100 for line in lines)


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


def test_the_picture_of_boxes_counts_them_and_draws_windows(monkeypatch: pytest.MonkeyPatch):
    photograph, left = Image.fromarray(np.full((40, 60, 3), 90, np.uint8)), np.zeros((4, 6), bool)
    left[1, 2] = True
    one = boxes.Drawn(np.array([[2.0, 3.0, 20.0, 30.0]]), [1])
    example = boxes.Example(
        photograph, one, {"uncompressed": one, "ours": boxes.Drawn(np.empty((0, 4)), [])}, {"ours": left}, 2
    )
    found: list[Any] = []
    monkeypatch.setattr(boxes, "save", lambda drawing, _: found.append(drawing))
    boxes.figure([example], ("a", "b"), Path("unused.png"))
    panels = found[0].axes
    assert [axes.get_title() for axes in panels] == ["labelled: 1", "uncompressed: 1", "ours: 0", "", "", "1 tokens"]
    (outline,) = panels[1].patches
    assert (outline.get_x(), outline.get_y(), outline.get_width(), outline.get_height()) == (2, 3, 18, 27)
    assert len(panels[5].lines) == 1 + 2 and [text.get_text() for text in found[0].legends[0].get_texts()] == ["b"]
    bright = panels[5].images[0].get_array()[:, :, 0] > 0.3
    assert bright.sum() == 10 * 10 and bright[10:20, 20:30].all()


def test_the_picture_of_depths_leaves_out_what_was_not_measured(monkeypatch: pytest.MonkeyPatch):
    photograph, truth = Image.fromarray(np.full((4, 8, 3), 90, np.uint8)), torch.full((4, 8), 2.0)
    truth[0] = 0
    seen = depth_maps.Predicted(torch.full((4, 8), 2.2), None, 0.1)
    short = depth_maps.Predicted(torch.full((4, 8), 3.0), np.eye(2, 4, dtype=bool), 0.5)
    found: list[Any] = []
    monkeypatch.setattr(depth_maps, "save", lambda drawing, _: found.append(drawing))
    example = depth_maps.Example(photograph, truth, {"uncompressed": seen, "ours": short})
    depth_maps.figure([example], Path("unused.png"))
    panels = found[0].axes[:9]
    titles = ["image", "uncompressed", "ours", "measured", "AbsRel 0.100", "AbsRel 0.500", "", "all tokens", "2 tokens"]
    assert [axes.get_title() for axes in panels] == titles
    error = panels[4].images[0].get_array()
    assert error.mask[0].all() and not error.mask[1:].any() and np.allclose(error[1:], 10)
