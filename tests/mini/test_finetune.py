"""Fine-tuning as a user calls it: killed and resumed, several jobs, ImageNet's layout, mistakes."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from safetensors.torch import load_file

import ttf
import ttf.cli  # registers what the configs resolve with
from tests.composing import composed
from tests.scripts_under_test import Done, Script, fresh
from ttf.calibration import load_matrices
from ttf.experiments import names, register
from ttf.models.weights import load_model
from ttf.tasks.identity import compression_settings
from ttf.tasks.options import reduction
from ttf.training.evaluation import Top1
from ttf.training.run import FineTuning

ROOT = Path(__file__).parents[2]
FEW = ["train.batch_size=8", "train.workers=0", "train.accumulate=1", "data.test.length=16"]
MINI = ["experiment=mini/finetune", "train.steps=8", "train.eval_every=2", *FEW]
TWO = [o for o in MINI if "train.steps" not in o] + ["train.steps=2"]
EXPERIMENTS = [name for name in names() if "finetune" in name]


def script(folder: Path, *overrides: str) -> Done:
    return fresh("scripts/finetune.py", *overrides, f"paths.logs={folder}/logs", folder=ROOT)


@pytest.fixture
def configured(tmp_path: Path) -> Callable[..., DictConfig]:
    def make(*overrides: str) -> DictConfig:
        with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
            register(overrides)
            return compose("finetune", [f"output={tmp_path}/out", f"paths.logs={tmp_path}/logs", *overrides])

    return make


def _same(one: Path, other: Path) -> bool:
    a, b = load_file(one), load_file(other)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def _rows(folder: Path) -> list[str]:
    return [line.rsplit(",", 1)[0] for line in (folder / "log.csv").read_text().splitlines()]


def test_kill_minus_nine_and_the_same_command_are_bit_equal_to_one_run(tmp_path, configured):
    out = tmp_path / "killed"
    training = Script("finetune", *MINI, f"output={out}", f"paths.logs={tmp_path}/logs")
    deadline = time.monotonic() + 200
    while not (out / "log.csv").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    training.kill()
    saved = torch.load(out / "state" / "state.pt", weights_only=True)["step"]
    assert 2 <= saved < 8 and not (out / "vit_mini.safetensors").exists()
    FineTuning(configured(*MINI, f"output={out}")).run()
    FineTuning(configured(*MINI)).run()
    assert _same(out / "vit_mini.safetensors", tmp_path / "out" / "vit_mini.safetensors")
    assert _rows(out) == _rows(tmp_path / "out") and len(_rows(out)) == 5


def test_what_is_written(tmp_path, configured):
    cfg = configured(*MINI)
    outcome, out = FineTuning(cfg).run(), tmp_path / "out"
    settings = yaml.safe_load((out / "config.yaml").read_text())
    assert json.loads((out / "summary.json").read_text()) == {**outcome, "config": settings}
    assert settings["train"]["batch_size"] == 8 and "paths" not in settings
    assert set(outcome["top1"]) == {"uncompressed", "training_free", "finetuned"}
    model = load_model(cfg.model, out / "vit_mini.safetensors")
    assert model.head.weight.dtype == torch.float32
    training = FineTuning(cfg)  # whose test set and engine judge the file
    ttf.apply(model, **reduction(cfg))
    assert Top1().percent(Top1().outcomes(model, training.test, training.engine)) == outcome["top1"]["finetuned"]


def test_a_folder_of_other_settings_is_not_continued(configured):
    FineTuning(configured(*TWO)).run()
    with pytest.raises(ValueError, match=r"holds a run with another data\.train\.length, train\.lr, train\.steps"):
        FineTuning(configured(*MINI, "train.lr=1e-3")).run()


def test_finished_runs_are_not_trained_again(tmp_path, configured):
    FineTuning(configured(*MINI)).run()
    rows, weights = _rows(tmp_path / "out"), (tmp_path / "out" / "vit_mini.safetensors").read_bytes()
    FineTuning(configured(*MINI, "train.workers=1")).run()
    assert _rows(tmp_path / "out") == rows
    assert (tmp_path / "out" / "vit_mini.safetensors").read_bytes() == weights


def test_the_default_recipe_on_imagenets_layout(tmp_path, configured, small, imagenet):
    shutil.copytree(imagenet / "val", imagenet / "train")
    few = ["train.epochs=2", "train.batch_size=4", "train.accumulate=2", "train.workers=0", "mixing.images=2"]
    few += ["data.train.complete=false", "data.test.complete=false"]
    outcome = FineTuning(configured(*small, "method=paper", "ratio=0.5", *few)).run()
    assert outcome["steps"] == 6 and outcome["images"] == 12
    assert [row.split(",")[0] for row in _rows(tmp_path / "out")] == ["step", "3", "6"]
    before, after = load_file(tmp_path / "small.safetensors"), load_file(tmp_path / "out" / "vit_ti_augreg.safetensors")
    moved = max((before[key] - after[key]).abs().max() for key in before)
    assert 0 < moved <= 6 * 2e-5 * 1.01


def test_distillation_trains_from_the_uncompressed_model(configured):
    teacher = ["objective.alpha=1.0"]
    training = FineTuning(configured(*MINI, *teacher, "train.steps=2"))
    start = training.objective._teacher[0].head.weight.clone()
    training.run()
    assert torch.equal(training.objective._teacher[0].head.weight, start)
    assert not torch.equal(training.model.head.weight, start)


def test_prune_and_merge_brings_its_matrices_along(tmp_path, configured):
    cfg = configured("experiment=mini/prune_and_merge", "train.steps=4", *FEW, "method.calibrate.images=8")
    training, out = FineTuning(cfg), tmp_path / "out"
    outcome = training.run()
    calibrated, trained = (
        load_matrices(out / "state" / "calibration.safetensors"),
        load_matrices(out / "method.safetensors"),
    )
    for block in calibrated.blocks:
        assert not torch.equal(calibrated.layers[block].merge, trained.layers[block].merge)
        assert not torch.equal(calibrated.layers[block].recover, trained.layers[block].recover)
    model = load_model(cfg.model, out / "vit_mini.safetensors")
    ttf.apply(model, method=trained, blocks=trained.blocks)
    assert Top1().percent(Top1().outcomes(model, training.test, training.engine)) == outcome["top1"]["finetuned"]


def test_wandb_continues_the_run_of_the_folder(tmp_path, configured, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    overrides = [*MINI, "train.steps=2", "train.eval_every=1", "logger=wandb"]
    training = FineTuning(configured(*overrides))
    training.run()
    import wandb

    (folder,) = (tmp_path / "logs" / "wandb").glob("offline-run-*")
    assert wandb.run is not None and folder.name.endswith(wandb.run.id)
    assert {"loss", "lr", "top1"} <= set(wandb.run.summary.keys())
    wandb.finish()
    assert FineTuning(configured(*overrides)).run_id == folder.name.rsplit("-", 1)[1]


def test_mistakes_end_with_one_line(tmp_path):
    given = [o for o in MINI if "accumulate" not in o] + ["train.accumulate=3", f"output={tmp_path}/out"]
    done = Script("finetune", *given).done()
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: train.batch_size=8 does not divide")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_are_complete(configured, name):
    cfg = configured(f"experiment={name}")
    assert cfg.name == name and cfg.finetuned and cfg.title
    assert reduction(cfg) is not None


def test_a_training_of_a_row_trains_what_the_row_measures(configured):
    cfg = configured("experiment=distilled/vit_ti_ours")
    assert cfg.name == "prune_and_merge/vit_ti_ours_distilled" and cfg.finetuned
    trained, measured = (reduction(one) for one in (cfg, composed("eval", f"experiment={cfg.name}")))
    assert compression_settings(trained) == compression_settings(measured)
    assert cfg.objective.alpha == 1.0 and cfg.train.keep == "best"
    seen = cfg.data.train.limit + cfg.data.test.limit
    assert cfg.data.test.skip == cfg.data.train.limit and composed("eval", f"experiment={cfg.name}").skip == seen


def _needs(plugin: str) -> None:
    pytest.importorskip(plugin, reason=f"needs {plugin}: the extra sweep")


@pytest.mark.slow
def test_joblib_runs_several_jobs(tmp_path):
    _needs("hydra_plugins.hydra_joblib_launcher")
    seeds = ["train.seed=0,1,-1", f"output={tmp_path}/${{train.seed}}", "hydra.launcher.n_jobs=2"]
    done = script(tmp_path, "-m", *TWO, "hydra/launcher=joblib", *seeds)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.count("error: train.seed") == 2 and "(of the run train.seed=-1 " in done.stderr
    assert all((tmp_path / seed / "summary.json").exists() for seed in "01")


@pytest.mark.slow
def test_submitit_runs_one_job_in_two_processes(tmp_path):
    _needs("hydra_plugins.hydra_submitit_launcher")
    one = [f"output={tmp_path}/out", "hydra/launcher=submitit_local"]
    done = script(tmp_path, "-m", *TWO, *one, "hydra.launcher.tasks_per_node=2", "hydra.launcher.timeout_min=5")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["processes"] == 2


def test_slurm_composes():
    _needs("hydra_plugins.hydra_submitit_launcher")
    slurm = ["hydra/launcher=submitit_slurm", "hydra.launcher.nodes=2", "hydra.launcher.gpus_per_node=8"]
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        register(["mini/finetune"])
        launcher = compose("finetune", ["experiment=mini/finetune", *slurm], return_hydra_config=True).hydra.launcher
    assert launcher._target_.endswith("SlurmLauncher")
    assert (launcher.nodes, launcher.gpus_per_node) == (2, 8)
