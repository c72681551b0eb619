"""Speed rows: several methods in one run, on the embedded model."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from ttf.bench import modes, timing
from ttf.bench.counting import counted
from ttf.bench.entries import experiment
from ttf.bench.listed import configs
from ttf.bench.timing import timings
from ttf.measure.provenance import operators_used
from ttf.report import speed
from ttf.results import costs

SMALL = ["model=deit_ti", *(f"+model.network.{item}" for item in ("depth=4", "embed_dim=48", "num_heads=3"))]
CONFIGS = str(Path(__file__).parents[2] / "configs")


def rows_of(*overrides: str) -> list[costs.Row]:
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        return [
            row for run in timings(compose("benchmark", ["batch=[2]", "rounds=5", *overrides])) for row in run.rows()
        ]


def test_a_row_compares_with_the_uncompressed_model():
    base, ours = rows_of("ratio=0.5")
    assert base["method"] == "uncompressed" and base["speed_up"] == 1 and base["mac_ratio"] == 1
    assert ours["method"] == "token_transform, ratio 0.5"
    assert ours["gmacs"] < base["gmacs"] and ours["mac_ratio"] == pytest.approx(base["gmacs"] / ours["gmacs"], abs=2e-3)
    assert ours["efficiency"] == pytest.approx(ours["speed_up"] / ours["mac_ratio"], abs=2e-3)
    assert ours["device"] and ours["torch"] and ours["attention"] and ours["rounds"] == 5
    assert ours["params_m"] == base["params_m"] > 0 and ours["peak_mib"] > 0 and ours["mode"] == "eager"
    assert base["gmacs_tokens"] == base["gmacs"] and ours["gmacs_tokens"] < ours["gmacs"]


def test_the_batch_fits_the_model():
    base, ours = rows_of("batch=null")
    assert base["batch"] == ours["batch"] == 16  # 0.2 GMACs an image


def test_a_run_is_known_by_its_settings():
    base, ours = rows_of("ratio=0.5")
    assert ours["settings"] == base["settings"] != rows_of("ratio=0.6")[0]["settings"]
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        again = list(timings(compose("benchmark", ["batch=[2,3]", "rounds=5", "ratio=0.5"])))
    assert [(run.batch, run.settings == base["settings"]) for run in again] == [(2, True), (3, False)]


def test_tokens_that_are_merged_within_their_block_have_no_gmacs_of_their_own():
    _, dense, evit = rows_of("experiments=['fig4b/tome_dense ratio=0.5 blocks=[3,6]','fig4a/evit ratio=0.5']")
    assert dense["gmacs_tokens"] == "" and dense["gmacs"] > evit["gmacs"]
    assert evit["gmacs_tokens"] == pytest.approx(evit["gmacs"], rel=2e-3)  # its fused token is one of the tokens


def test_the_cost_of_others_is_that_of_ours():
    entries = (
        "fig4a/token_transform ratio=0.5 blocks=[1,2]",
        "fig4a/tome schedule.r=?",
        "fig4a/evit ratio=? blocks=[1,2]",
    )
    base, ours, tome, evit = rows_of(f"experiments={list(entries)}", "benchmark=equal", *SMALL)
    assert ours["gmacs_of_reference"] == 1 and base["gmacs_of_reference"] == ""
    assert tome["gmacs_of_reference"] == pytest.approx(1, abs=0.02) and evit["gmacs_of_reference"] == pytest.approx(
        1, abs=0.01
    )
    assert tome["method"].startswith("ToMe schedule.r=") and tome["method"] != "ToMe schedule.r=?"
    assert {row["benchmark"] for row in (base, ours, tome, evit)} == {"equal"}
    header, *lines = speed.cells([base, ours, tome, evit])
    assert {line[header.index("method")]: line[header.index("GMACs to reference")] for line in lines}[
        "uncompressed"
    ] == ""


def test_a_fitted_method_is_timed_beside_others_at_its_budget():
    fitted = "'fig4a/prune_and_merge method.calibrate.keep_rate=0.5'"
    base, merged, ours = rows_of(f"experiments=[{fitted},'fig4a/token_transform ratio=?']")
    assert merged["method"] == "Prune and Merge (no fine-tuning) method.calibrate.keep_rate=0.5"
    assert merged["fitted_on"] == "2 random images" and "fitted_on" not in ours
    assert merged["gmacs_of_reference"] == 1 and ours["gmacs_of_reference"] == pytest.approx(1, abs=0.01)
    assert merged["gmacs"] < base["gmacs"] and merged["gmacs_tokens"] == "" and merged["speed_up"] > 0
    header, *lines = speed.cells([base, merged, ours])
    assert [line[header.index("fitted on")] for line in lines].count("2 random images") == 1


def test_a_fitted_method_is_counted():
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        found = [counted(experiment(f"fig4a/prune_and_merge method.calibrate.keep_rate={k}")[1]) for k in (0.4, 0.8)]
    assert found[0]["gmacs"] < found[1]["gmacs"] and found[1]["ratio"] == 0.8
    assert found[0]["fitted_on"] == "2 random images"


def test_images_of_several_sizes():
    rows = rows_of(*SMALL, "pixels=[64,96]", "blocks=[1,2]")
    assert [(row["pixels"], row["tokens"]) for row in rows] == [("64", 17), ("64", 17), ("96", 37), ("96", 37)]
    assert len({row["settings"] for row in rows}) == 2


def test_the_batches_of_a_sweep():
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        runs = timings(compose("benchmark", ["batch=sweep", "device=cpu", "modes=[eager,compiled]"]))
    assert [(run.batch, run.mode) for run in runs] == [(b, m) for m in ("eager", "compiled") for b in (1, 8, 32)]


@pytest.mark.slow
def test_onnx_runtime_is_timed_against_onnx_runtime():
    for needed in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(needed)
    entries = "experiments=['fig4a/evit ratio=0.5 blocks=[0]','fig4a/tome schedule.r=2']"
    base, evit, tome = rows_of("modes=[onnx]", *SMALL[:1], "+model.network.depth=2", *SMALL[2:], "pixels=[64]", entries)
    assert base["speed_up"] == 1 and {row["mode"] for row in (base, evit, tome)} == {"onnx"}
    assert 0 < max(base["max_error"], evit["max_error"], tome["max_error"]) < 1e-3
    header, line, *_ = speed.cells([base, evit, tome])
    assert "peak MiB" not in header  # ONNX Runtime has an allocator of its own
    assert line[header.index("error")].endswith(f"{base['max_error']:.0e}")


def test_who_cannot_run_in_a_mode_is_left_out(monkeypatch):
    ready = modes.ready

    def fails(model, mode, images, name):
        if "EViT" in name:
            raise ValueError("no operator for that")
        return ready(model, mode, images, name)

    monkeypatch.setattr(modes, "ready", fails)
    with pytest.warns(UserWarning, match="batch 2, float32, eager.*no operator for that"):
        rows = rows_of("experiments=['fig4a/evit ratio=0.5','fig4a/tome schedule.r=11']")
    assert [row["method"] for row in rows] == ["uncompressed", "ToMe schedule.r=11"]
    with pytest.raises(ValueError, match="no operator for that"):
        rows_of("experiments=['fig4a/evit ratio=0.5']")


@pytest.mark.slow
def test_compiled_models_are_timed_against_the_compiled_one():
    shallow = [*SMALL, "model.network.depth=2", "pixels=[32]"]
    rows = rows_of("modes=[compiled]", *shallow, "ratio=0.5", "blocks=[0]")
    assert {row["operators"] for row in rows} == {operators_used(torch.device("cpu"))}
    assert [row["mode"] for row in rows] == ["compiled", "compiled"] and rows[0]["speed_up"] == 1


def test_experiments_are_timed_in_one_run(tmp_path):
    rows = rows_of("experiments=['fig4a/evit ratio=0.5','fig4a/tome schedule.r=11','fig4a/ats ratio=0.5']")
    assert [row["method"] for row in rows] == [
        "uncompressed",
        "EViT ratio=0.5",
        "ToMe schedule.r=11",
        "ATS ratio=0.5",
    ]
    costs.write(rows, tmp_path / "speed.csv")
    with (tmp_path / "speed.csv").open(newline="") as file:
        assert [line["method"] for line in csv.DictReader(file)] == [row["method"] for row in rows]
    header, first, *_ = speed.cells(rows)
    assert dict(zip(header, first, strict=True))["method"] == "uncompressed"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method=none", "compresses nothing"),
        ("experiments=[readings/none]", "readings/none cannot be timed"),
        (
            "experiments=['fig4a/evit ratio=0.5','fig4a/prune_and_merge method.calibrate.keep_rate=?']",
            "is found by counting",
        ),
        ("rounds=3", "at least 5 rounds"),
        ("modes=[fast]", "modes must be some of eager, compiled, autotune, graphs, captured, compiled_captured, onnx"),
        ("modes=[graphs]", "need a GPU"),
        ("batch=many", "batch must be a list"),
        ("pixels=[224]", "vit_mini is none"),
        ("experiments=['fig4a/evit ratio=?']", "name one without"),
        ("experiments=['fig4a/evit ratio=0.5','fig4a/paper kappa=?']", "is found by counting"),
        ("table=table0", "there is no table 'table0': choose one of .*table1, "),
    ],
)
def test_what_cannot_be_timed_is_named(override, message):
    with pytest.raises(ValueError, match=message):
        rows_of(override)


# The benchmarks of configs/tables/speed.yaml


def listed(*given):
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        return configs(compose("benchmark", ["table=speed", *given]), ["table=speed", *given])


def test_a_listed_benchmark_has_its_own_values_and_those_of_the_command_line():
    (cfg,) = listed("benchmark=equal", "model=deit_ti", "rounds=5", "seconds=null", "paths.results=out")
    assert (cfg.table, cfg.benchmark, cfg.model.name, cfg.batch) == (None, "equal", "deit_ti", "sweep")
    assert (cfg.rounds, cfg.seconds, cfg.csv) == (5, None, "out/speed/deit_ti_equal.csv")
    assert cfg.experiments[0] == "fig4a/token_transform ratio=0.7"


def test_a_table_lists_all_its_benchmarks_and_those_of_one_model():
    everything = [Path(cfg.csv).stem for cfg in listed()]
    assert everything[:3] == ["deit_s_equal", "deit_s_methods", "deit_s_peers"]
    assert everything[3:6] == ["deit_s_tokens", "vit_l_tokens", "segmenter_l"]
    assert {"deit_s_modes", "prune_and_merge", "table1", "table2"} < set(everything)
    assert {cfg.model.name for cfg in listed("model=deit_ti")} == {"deit_ti"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["benchmark=equl"], "^speed has no benchmark 'equl': choose one of equal, methods, peers, tokens, .*table2$"),
        (["benchmark=vit_l", "model=deit_s"], "^benchmark=vit_l has models of its own: leave out model=deit_s$"),
        (["benchmark=table1", "model=deit_s"], "^benchmark=table1 has models of its own"),
    ],
)
def test_a_benchmark_that_is_not_there_is_named(given, message):
    with pytest.raises(ValueError, match=message):
        listed(*given)


@pytest.mark.parametrize("given", [["ratio=0.5"], ["table=table1", "batch=null"]])
def test_a_config_without_such_a_table_is_itself(given):
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        cfg = compose("benchmark", given)
    assert configs(cfg, given) == [cfg]


def test_a_table_of_experiments_takes_no_model():
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        cfg = compose("benchmark", ["table=table1", "model=deit_s"])
    with pytest.raises(ValueError, match="^table=table1 has models and methods of its own: leave out model=deit_s$"):
        configs(cfg, ["table=table1", "model=deit_s"])


@pytest.mark.parametrize("name", ["equal", "vit_l"])
def test_published_rows_are_those_of_their_benchmark(name, monkeypatch):
    """What is there is not timed again, on the machine that it comes from."""
    (cfg,) = listed(f"benchmark={name}")
    rows = costs.read(Path(CONFIGS).parent / "results" / "speed" / Path(cfg.csv).name)
    known = {"device": rows[0]["device"], "versions": {"torch": rows[0]["torch"]}}
    monkeypatch.setattr(timing, "provenance", lambda *_: known)
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        wanted = {run.settings for run in timings(cfg)}
    assert wanted <= {row["settings"] for row in rows}


# Parts of vision-language models

LLAVA = ["model=llava_mini", "+model.network.width=32", "+model.network.depth=1"]


def test_tower_prefill_and_answer_are_timed_by_themselves():
    rows = rows_of(*LLAVA, "batch=[1]", "parts=[tower,answer]", "experiments=['table5/ours_default ratio=0.5']")
    assert [row["part"] for row in rows] == ["tower"] * 2 + ["answer"] * 2
    assert rows[0]["gmacs"] < rows[2]["gmacs"] and rows[1]["mac_ratio"] > 1 < rows[3]["mac_ratio"]
    assert [row.get("answer_tokens") for row in rows] == [None, None, 8, 8]
    assert costs.merged(rows[:2], rows[2:]) == rows and costs.merged(rows, rows[:2]) == [*rows[2:], *rows[:2]]
    table = speed.cells(rows)
    assert [line[table[0].index("part")] for line in table[1:]] == ["answer"] * 2 + ["tower"] * 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["parts=[head]"], "parts must be of tower"),
        (["parts=[tower]", "model=vit_mini"], "vit_mini is none"),
        (["parts=[tower]", "modes=[compiled]"], r"modes=\[eager\] alone"),
    ],
)
def test_parts_that_there_are_not(overrides: list[str], message: str):
    with pytest.raises(ValueError, match=message):
        rows_of("model=llava_mini", *overrides)
