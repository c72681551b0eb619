"""Speed rows: several methods in one run, on the embedded model."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from ttf.results import speed
from ttf.tasks.speed import measure

CONFIGS = str(Path(__file__).parents[2] / "configs")


def rows_of(*overrides: str) -> list[speed.Row]:
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        return [row for rows in measure(compose("benchmark", ["batch=[2]", "rounds=5", *overrides])) for row in rows]


def test_a_row_compares_with_the_uncompressed_model():
    base, ours = rows_of("ratio=0.5")
    assert base["method"] == "uncompressed" and base["speed_up"] == 1 and base["mac_ratio"] == 1
    assert ours["method"] == "token_transform, ratio 0.5"
    assert ours["gmacs"] < base["gmacs"] and ours["mac_ratio"] == pytest.approx(base["gmacs"] / ours["gmacs"], abs=2e-3)
    assert ours["of_mac_ratio"] == pytest.approx(ours["speed_up"] / ours["mac_ratio"], abs=2e-3)
    assert ours["device"] and ours["torch"] and ours["attention"] and ours["rounds"] == 5
    assert ours["params_m"] == base["params_m"] > 0 and ours["peak_mib"] > 0 and ours["mode"] == "eager"
    assert base["gmacs_tokens"] == base["gmacs"] and ours["gmacs_tokens"] < ours["gmacs"]


def test_the_batch_fits_the_model():
    base, ours = rows_of("batch=null")
    assert base["batch"] == ours["batch"] == 16  # 0.2 GMACs an image


def test_a_contest_is_known_by_its_settings():
    base, ours = rows_of("ratio=0.5")
    settings = base["settings"]
    assert ours["settings"] == settings != rows_of("ratio=0.6")[0]["settings"]
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        cfg = compose("benchmark", ["batch=[2,3]", "rounds=5", "ratio=0.5"])
        (again,) = measure(cfg, {settings})
    assert {row["batch"] for row in again} == {3}


@pytest.mark.slow
def test_compiled_models_are_timed_against_the_compiled_one():
    rows = rows_of("modes=[compiled]", "ratio=0.5")
    assert [row["mode"] for row in rows] == ["compiled", "compiled"] and rows[0]["speed_up"] == 1


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
    assert dict(zip(header, first, strict=True))["method"] == "uncompressed"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method=none", "compresses nothing"),
        ("experiments=[readings/none]", "readings/none cannot be timed"),
        ("experiments=[fig4a_prune_and_merge/prune_and_merge]", "needs images to calibrate"),
        ("rounds=3", "at least 5 rounds"),
        ("modes=[fast]", "modes must be some of eager, compiled"),
        ("table=table0", "there is no table 'table0': choose one of .*table1"),
    ],
)
def test_what_cannot_be_timed_is_named(override, message):
    with pytest.raises(ValueError, match=message):
        rows_of(override)
