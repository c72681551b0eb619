"""A task that is not in this repository goes from outcomes to table, figure, terminal and W&B by declaring a metric.

Counting: the outcome of an image is one error for every object in it, so it is ragged; fewer is better.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from rich.console import Console
from torch import Tensor

from tests.unit.made_up_rows import row, table
from ttf import metrics, report
from ttf.metrics import Estimate, Metric, intervals
from ttf.metrics.metric import _DECLARED, ImageOutcomes
from ttf.metrics.outcomes import count, pieces, stack
from ttf.report import curves, figures
from ttf.report.terminal import print_row
from ttf.report.wandb import log_row
from ttf.results.measured import Measured

OBJECTS = [3, 0, 1, 2, 5, 1]


def _by_image(outcomes: ImageOutcomes) -> Tensor:
    """Sum of the errors of each image, (n,) mm."""
    return torch.stack([errors.sum() for errors in pieces(outcomes, "errors")]).double()


def _estimate(outcomes: ImageOutcomes) -> Estimate:
    values = _by_image(outcomes)
    return Estimate(values.mean().item(), *intervals.mean(values))


def _difference(a: ImageOutcomes, b: ImageOutcomes) -> Estimate:
    values = _by_image(a) - _by_image(b)
    return Estimate(values.mean().item(), *intervals.mean(values))


ERROR = Metric(
    "placing_error",
    "error",
    "mm",
    higher_is_better=False,
    estimate=_estimate,
    decimals=2,
    title="error of placing",
    meaning="sum over the objects of an image",
    difference=_difference,
    headline=True,
)


@pytest.fixture(autouse=True)
def task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ttf.metrics.metric._DECLARED", dict(_DECLARED))
    metrics.declare("placing", [ERROR])


def _outcomes(error: float) -> dict[str, Tensor]:
    return stack([{"errors": torch.full((objects,), error) + 0.01 * torch.arange(objects)} for objects in OBJECTS])


def _row(name: str, error: float, gmacs: float, **given: Any) -> Measured:
    return row(name, _outcomes(error), "placing", gmacs=gmacs, **given)


@pytest.fixture
def rows() -> list[Measured]:
    schedule = {"class": "KeepRatio", "ratio": 0.7}
    return [
        _row("none", 1.0, 2.0, method=None),
        _row("a", 1.5, 1.5, schedule=schedule, experiments=["toy/ours"], speed_up=1.2),
        _row("b", 3.0, 1.0, schedule=schedule, experiments=["toy/ours"]),
    ]


SPEC = {"ours": {"title": "ours", "paper": {"placing_error": 3.0}}}
MEAN = 2.0 + 0.01 * (3 + 1 + 10) / 6  # objects an image, and what their numbers add


def test_a_ragged_outcome_makes_a_row(rows: list[Measured]):
    assert set(rows[0].images) == {"errors.values", "errors.lengths"} and count(rows[0].images) == len(OBJECTS)
    assert rows[0].row["metrics"]["placing_error"]["value"] == pytest.approx(MEAN, abs=1e-6)
    rest = rows[0].without(2)
    assert rest.count == 4 and rest.value("placing_error") == pytest.approx((1 + 2.01 + 5.1 + 1) / 4, abs=1e-6)


def test_a_table(rows: list[Measured], tmp_path: Path):
    spec = table("toy", "ablation", SPEC, paper_base={"placing_error": 2.0}, order="placing_error")
    (path,) = report.render(spec, rows, report.Options(tmp_path, show=False))
    head, _, *lines = [line for line in path.read_text().splitlines() if line.startswith("|")]
    names = [cell.strip() for cell in head.strip("|").split("|")]
    wanted = ", paper error (rise), error [95 %], rise [95 %], difference, verdict, GMACs, speed-up"
    assert names == wanted.split(", ")
    cells = [dict(zip(names, (cell.strip() for cell in line.strip("|").split("|")), strict=True)) for line in lines]
    assert [line[""] for line in cells] == ["uncompressed", "ours", "ours"]
    assert [line["error [95 %]"].split()[0] for line in cells] == ["2.02", "3.02", "6.02"]
    assert [line["rise [95 %]"].split()[0] for line in cells[1:]] == ["1.00", "4.00"]
    assert [line["verdict"] for line in cells[1:]] == ["agrees", "loses more"]
    assert cells[1]["paper error (rise)"] == "3.00 (1.00)" and cells[1]["speed-up"] == "1.20x, efficiency 0.90"
    assert "rise: mm of error above the uncompressed model" in path.read_text()


def test_a_figure_against_gmacs(rows: list[Measured], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    drawn: list[Any] = []
    monkeypatch.setattr(curves, "save", lambda figure, path: drawn.append(figure) or figures.save(figure, path))
    spec = table("toy", "curves", {"ours": "ours"}, ranking="placing_error", depth=9)
    text, picture = report.render(spec, rows, report.Options(tmp_path, show=False))
    assert picture.read_bytes().startswith(b"\x89PNG")
    (panel,) = drawn[0].axes
    assert panel.get_ylabel() == "error of placing, mm (bands: of the rise)"
    (line,) = [found for found in panel.lines if found.get_label() == "ours"]
    assert line.get_xdata().tolist() == [1.0, 1.5] and line.get_ydata().tolist() == pytest.approx(
        [6.02, 3.02], abs=0.01
    )
    assert panel.get_ylim() == pytest.approx((MEAN - 1, MEAN + 9))
    assert "lowest error" in text.read_text() and "ours 6.02" in text.read_text()


def test_the_terminal(rows: list[Measured]):
    console = Console(width=100, record=True, file=io.StringIO())
    print_row(rows[1].row, console)
    (line,) = [line for line in console.export_text().splitlines() if "placing_error" in line]
    assert "3.02 mm [" in line


def test_wandb_gets_the_same_number(rows: list[Measured], monkeypatch: pytest.MonkeyPatch):
    logged: list[dict[str, float]] = []

    class Run:
        def log(self, numbers: dict[str, float]) -> None:
            logged.append(numbers)

        def finish(self) -> None:
            pass

    monkeypatch.setattr("ttf.report.wandb.wandb_run", lambda *_, **__: Run())
    log_row(rows[1].row, OmegaConf.create({"name": "wandb"}))
    (numbers,) = logged
    others = {"gmacs": 1.5, "params_m": 5.7, "images": 6, "speed_up": 1.2}
    assert numbers == {"placing_error": rows[1].value("placing_error"), **others}
