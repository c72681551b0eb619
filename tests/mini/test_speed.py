"""Speed rows: several methods in one run, on the embedded model."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from ttf.tasks import speed

CONFIGS = str(Path(__file__).parents[2] / "configs")


def rows_of(*overrides: str) -> list[speed.Row]:
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        return list(speed.measure(compose("benchmark", ["batch=[2]", "rounds=5", *overrides])))


def test_a_row_compares_with_the_uncompressed_model():
    base, ours = rows_of("ratio=0.5")
    assert base["method"] == "uncompressed" and base["speed_up"] == 1 and base["mac_ratio"] == 1
    assert ours["method"] == "token_transform, ratio 0.5"
    assert ours["gmacs"] < base["gmacs"] and ours["mac_ratio"] == pytest.approx(base["gmacs"] / ours["gmacs"], abs=2e-3)
    assert ours["of_mac_ratio"] == pytest.approx(ours["speed_up"] / ours["mac_ratio"], abs=2e-3)
    assert ours["device"] and ours["torch"] and ours["rounds"] == 5


def test_experiments_are_timed_in_one_run(tmp_path):
    rows = rows_of("experiments=['fig4a/evit ratio=0.5','fig4a_tome/tome schedule.r=11','fig4a_coarse/ats ratio=0.5']")
    assert [row["method"] for row in rows] == [
        "uncompressed",
        "EViT ratio=0.5",
        "ToMe schedule.r=11",
        "ATS ratio=0.5",
    ]
    speed.write(rows, tmp_path / "speed.csv")
    with (tmp_path / "speed.csv").open(newline="") as file:
        assert [line["method"] for line in csv.DictReader(file)] == [row["method"] for row in rows]
    header, first, *_ = speed.cells(rows)
    assert len(header) == len(first) and first[1] == "uncompressed"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method=none", "compresses nothing"),
        ("experiments=[readings/none]", "readings/none cannot be timed"),
        ("experiments=[fig4a_prune_and_merge/prune_and_merge]", "needs images to calibrate"),
        ("rounds=3", "at least 5 rounds"),
    ],
)
def test_what_cannot_be_timed_is_named(override, message):
    with pytest.raises(ValueError, match=message):
        rows_of(override)
