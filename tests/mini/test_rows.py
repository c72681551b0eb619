"""Rows of results, end to end on the embedded model and on a small ImageNet."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ttf.results.store import Store
from ttf.tasks import classification
from ttf.tasks import run as run_module


def test_a_row_holds_what_a_table_needs(evaluate):
    row = evaluate("ratio=0.7")
    for name in ("top1", "top5", "agreement", "kl", "class_token_error"):
        low, high = row["metrics"][name]["ci95"]
        assert low <= row["metrics"][name]["value"] <= high
    assert [layer["tokens"] for layer in row["tokens"]] == [
        101,
        71,
        50,
    ]  # 144 patches: 100, 70, 49, and the class token
    assert row["images"] == 32
    assert row["preprocessing"]["mean"] == (0.5, 0.5, 0.5)
    assert row["config"]["weights"] and row["versions"]["torch"] and row["git"] and row["config"]["dtype"] == "float32"


def test_uncompressed_rows_agree_with_themselves(evaluate):
    row = evaluate("method=none")
    assert row["metrics"]["agreement"]["value"] == 100
    assert row["metrics"]["kl"]["value"] == 0
    assert row["tokens"] == []


def test_ratio_one_changes_nothing(evaluate):
    row, base = evaluate("ratio=1.0"), evaluate("method=none")
    assert row["metrics"]["kl"]["value"] == 0
    assert row["gmacs"] == base["gmacs"]
    assert row["id"] != base["id"]


def test_compression_costs_less_and_moves_the_answer(evaluate):
    rows = [evaluate(f"ratio={ratio}") for ratio in (0.9, 0.5)]
    assert rows[1]["gmacs"] < rows[0]["gmacs"] < evaluate("method=none")["gmacs"]
    assert rows[1]["metrics"]["kl"]["value"] > rows[0]["metrics"]["kl"]["value"] > 0


def test_finished_rows_are_skipped_and_force_runs_again(evaluate, configured, monkeypatch):
    first = evaluate()
    calls = []
    measure = run_module.Run.measure
    monkeypatch.setattr(run_module.Run, "measure", lambda self, *given: calls.append(1) or measure(self, *given))
    assert json.dumps(evaluate()) == json.dumps(json.loads(json.dumps(first)))
    assert not calls
    killed = Path(configured().paths.runs) / f"{first['id']}.started.json"  # between the row and the end of its note
    killed.write_text("{}")
    evaluate()
    assert not killed.exists() and not calls
    evaluate("force=true")
    assert len(calls) == 1


def test_what_cannot_change_the_numbers_does_not_change_the_identity(evaluate):
    names = {evaluate(*o)["id"] for o in ((), ("workers=1",), ("logger=wandb",), ("out=/nowhere/x.json",))}
    assert len(names) == 1
    assert evaluate("tau=20")["id"] not in names
    assert evaluate("method=none", "ratio=0.5")["id"] == evaluate("method=none", "ratio=0.7")["id"]


def test_options_of_the_method_reach_the_row(evaluate):
    literal, default = evaluate("method=paper"), evaluate()
    said = {"class": "TokenTransform", "isolate": False, "accumulate": False, "feature": "x"}
    assert said.items() <= literal["config"]["method"].items()
    assert literal["metrics"]["kl"]["value"] != default["metrics"]["kl"]["value"]
    same = evaluate(
        "method.accumulate=false", "method.isolate=false", "method.feature=x", "method.selection=informative"
    )
    assert same["metrics"]["kl"]["value"] == literal["metrics"]["kl"]["value"]
    assert same["id"] == literal["id"]  # the same numbers, however they are written


def test_a_schedule_of_its_own(evaluate):
    row = evaluate("schedule=remove_per_block", "schedule.r=11")
    assert [layer["tokens"] for layer in row["tokens"]][:3] == [134, 123, 112]


def test_throughput_is_measured_interleaved(evaluate):
    row = evaluate("throughput.batch_size=2", "throughput.rounds=5")
    assert row["throughput"]["compressed"]["speed_up"] > 0
    assert set(row["throughput"]) == {"batch_size", "rounds", "uncompressed", "compressed"}


def test_failures_are_recorded_with_their_traceback(evaluate, tmp_path):
    with pytest.raises(ValueError, match="blocks .99. are out of range"):
        evaluate("blocks=[99]")
    (record,) = (tmp_path / "runs").glob("*.failed.json")
    content = json.loads(record.read_text())
    assert "Traceback" in content["traceback"]
    assert content["config"]["schedule"]["blocks"] == [99]
    assert not list((tmp_path / "runs").glob("*.started.json"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("ratio=0", r"in \(0, 1\], got 0"),
        ("ratio=1.2", r"in \(0, 1\], got 1.2"),
        ("kappa=1.5", r"kappa .* in \[-1, 1\]"),
        ("tau=0", "tau .* positive"),
        ("limit=0", "limit must be at least 1"),
        ("device=cuda:77", "not available here"),
        ("dtype=float8", "float32, float16, bfloat16"),
        ("on_bad_image=ignore", "stop, skip"),
        ("checkpoint=/no/such.safetensors", "no checkpoint at"),
        ("model=vit_ti_augreg", "no ImageNet at"),
        ("method.feature=z", "x, norm, keys, xk"),
    ],
)
def test_bad_values_are_named(evaluate, override, message):
    with pytest.raises(ValueError, match=message):
        evaluate(override)


def test_a_model_for_another_task_is_refused_with_the_valid_ones(configured):
    cfg = configured("model.tasks=[seg]")
    with pytest.raises(ValueError, match=r"not for task=cls: choose one of .*deit_s.*vit_mini"):
        run_module.Run(cfg)


def test_imagenet_layout(evaluate, small):
    row = evaluate(*small, "limit=null")
    assert row["images"] == 12
    assert row["bad_images"] == []


def test_limit_takes_the_first_of_a_seeded_shuffle(configured, small):
    def indices(*overrides: str) -> list[int]:
        return run_module.Run(configured(*small, *overrides)).task.data.indices

    assert indices("limit=5") == indices("limit=12")[:5]
    assert indices("limit=12", "seed=1") != indices("limit=12", "seed=0")


def test_truncated_images_stop_or_are_named_and_counted(evaluate, small, imagenet):
    broken = imagenet / "val" / "n01440764" / "photograph_00000002.JPEG"
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"photograph_00000002.JPEG cannot be read.*on_bad_image=skip"):
        evaluate(*small)
    row = evaluate(*small, "on_bad_image=skip")
    assert row["images"] == 11
    assert row["bad_images"] == ["photograph_00000002.JPEG"]


def test_nothing_readable_is_an_error(evaluate, small, imagenet):
    for file in imagenet.rglob("*.JPEG"):
        file.write_bytes(b"")
    with pytest.raises(ValueError, match="not a single image could be read"):
        evaluate(*small, "on_bad_image=skip")


def test_an_unwritable_folder_of_rows_stops_before_the_work(configured, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot write in"):
        run_module.execute(configured(f"paths.runs={tmp_path}/file/runs"))


def test_a_sweep_computes_the_uncompressed_model_once(evaluate, tmp_path, monkeypatch):
    evaluate("tau=20")
    labels = []
    predict = classification.predict
    monkeypatch.setattr(classification, "predict", lambda *a, **k: labels.append(a[3]) or predict(*a, **k))
    evaluate("tau=100")
    assert len(labels) == 1
    assert "uncompressed" not in labels[0]
    assert len(list(Path(tmp_path / "cache").iterdir())) == 1


METHODS = sorted(f.stem for f in (Path(__file__).parents[2] / "configs" / "method").glob("*.yaml") if f.stem != "none")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_config_that_runs(evaluate, method):
    calibration = ["method.calibrate.images=8"] if method == "prune_and_merge" else []
    row = evaluate(f"method={method}", "limit=8", "ratio=0.5", *calibration)
    assert row["gmacs"] > 0 and bool(row["tokens"]) == (method != "tome_dense")  # which is dense between the branches
    assert row["metrics"]["kl"]["value"] > 0


def test_outcomes_are_kept_image_by_image(evaluate, tmp_path):
    row = evaluate("ratio=0.4", "name=probe/a")
    images = Store(tmp_path / "runs").images(row["id"])
    assert {name: len(values) for name, values in images.items()} == dict.fromkeys(row["metrics"], 32)
    assert images["kl"].double().mean().item() == pytest.approx(row["metrics"]["kl"]["value"])
    assert 100 * images["top1"].double().mean().item() == pytest.approx(row["metrics"]["top1"]["value"])


def test_a_row_may_belong_to_several_experiments(evaluate):
    def names(*overrides: str) -> list[str]:
        return [one["name"] for one in evaluate(*overrides)["experiments"]]

    assert names("name=probe/a") == ["probe/a"]
    assert names("name=probe/b", "title=a label") == ["probe/a", "probe/b"]  # a label does not rename rows
    assert names("name=probe/a") == ["probe/a", "probe/b"]


def test_an_uncompressed_row_knows_no_schedule(evaluate):
    config = evaluate("method=none", "schedule=remove_per_block")["config"]
    assert config["method"] is None and config["schedule"] is None and config["recover"] is None


@pytest.mark.parametrize("how", ["ratio=0.5", "method=none"])
def test_images_behind_the_first_ones_are_taken_from_a_row_of_all(how, evaluate, monkeypatch):
    few = ("task.data.scenes.length=24", "limit=null", how)
    whole = evaluate(*few)
    alone = evaluate(*few, "skip=10", "force=true")
    measured = []
    monkeypatch.setattr(run_module.Run, "measure", lambda self, *given: measured.append(1))
    part = evaluate(*few, "skip=10")  # has finished
    assert part["id"] == alone["id"] != whole["id"] and part["images"] == 14 and not measured
    monkeypatch.setattr(run_module, "_finished", lambda *_: None)
    taken = evaluate(*few, "skip=10")
    assert taken["part_of"] == whole["id"] and taken["id"] == alone["id"] and not measured
    for name, metric in alone["metrics"].items():
        assert taken["metrics"][name]["value"] == pytest.approx(metric["value"], rel=1e-3, abs=1e-7)
