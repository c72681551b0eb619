"""Tasks from Python, without Hydra: the numbers of the rows that the scripts write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import ttf
from tests.composing import composed
from tests.scripts_under_test import fresh
from ttf.config_store import model as config
from ttf.data.scenes import SceneClassification, SceneSegmentation
from ttf.models.weights import load_model, save_weights
from ttf.tasks import Classification, Segmentation
from ttf.tasks.run import Run, execute
from ttf.tasks.windows import Inference

ROOT = Path(__file__).parents[3]


def _model(name: str) -> Any:
    return load_model(config(name), None, None, None)


def _row(folder: Path, *overrides: str) -> Any:
    places = [f"paths.{name}={folder}/{name}" for name in ("rows", "runs", "cache")]
    return execute(composed("eval", "throughput.batch_size=0", *overrides, *places), [])


def test_classification(tmp_path: Path) -> None:
    model = _model("vit_mini")
    task = Classification(SceneClassification("test", 1000), model=model, limit=24)
    plain, ours = task.evaluate(), task.evaluate(ratio=0.5)
    assert plain["agreement"]["value"] == 100 and plain["kl"]["value"] == 0 < ours["kl"]["value"]
    assert ours == _row(tmp_path, "limit=24", "ratio=0.5")["metrics"]
    assert ttf.plan(model) is None  # uncompressed again
    assert task.evaluate() == plain


def test_segmentation(tmp_path: Path) -> None:
    model = _model("segmenter_mini")
    how = config("segmenter_mini").inference
    task = Segmentation(SceneSegmentation("test", 300), model=model, limit=4, inference=Inference(**how))
    plain, ours = task.evaluate(), task.evaluate(ratio=0.5, recover=True)
    assert plain["agreement"]["value"] == 100 and plain["kl"]["value"] == 0 < ours["kl"]["value"]
    row = _row(tmp_path, "task=seg", "model=segmenter_mini", "limit=4", "ratio=0.5", "recover=true")
    assert ours == row["metrics"]
    assert ttf.plan(model) is None


def test_fine_tuned_weights_are_compared_with_the_models_own(tmp_path: Path) -> None:
    """KL to the outputs before the fine-tuning, compressed or not; the uncompressed outputs are kept once."""
    model = _model("vit_mini")
    with torch.no_grad():
        model.head.weight.mul_(0.5)
    save_weights(model, tmp_path / "trained" / "t" / "x" / "vit_mini.safetensors")
    tuned = ["finetuned=true", "name=t/x", f"paths.trained={tmp_path}/trained", "limit=12"]
    plain, ours = (_row(tmp_path, *tuned, more)["metrics"] for more in ("method=none", "ratio=0.5"))
    own = _row(tmp_path, "limit=12", "ratio=0.5")["metrics"]
    task = Classification(SceneClassification("test", 1000), model=model, limit=12)
    with torch.inference_mode():
        p, q = (one(task.images(range(12))).log_softmax(1) for one in (_model("vit_mini"), model))
    assert plain["kl"]["value"] == pytest.approx((p.exp() * (p - q)).sum(1).mean().item(), rel=1e-4)
    assert plain["kl"]["value"] > 0.01 and ours["kl"]["value"] != own["kl"]["value"]
    assert len(list((tmp_path / "cache").glob("base-*"))) == 1


def test_calibration_looks_at_the_images_that_are_left_out_first(tmp_path: Path) -> None:
    few = ["method=prune_and_merge", "method.calibrate.images=8"]
    fitted = []
    for skip in (0, 40):
        run = Run(composed("eval", *few, f"skip={skip}", f"paths.cache={tmp_path}"))
        model, _ = run.load()
        run._fit_method(model)
        assert run.reduction is not None
        fitted.append(run.reduction["method"].layers)
    assert all(torch.equal(fitted[0][block].merge, fitted[1][block].merge) for block in fitted[0])


def test_what_is_wrong_is_said() -> None:
    scenes = SceneClassification("test", 20)
    with pytest.raises(ValueError, match=r"nothing to evaluate: Classification\(model=MODEL, data=DATA\)"):
        Classification(scenes).evaluate()
    with pytest.raises(ValueError, match="at least 1"):
        Classification(scenes, limit=0)
    with pytest.raises(ValueError, match="stop or skip"):
        Classification(scenes, on_bad_image="ignore")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="leave workers=2 out"):
        Segmentation(SceneSegmentation("test", 20), workers=2)
    with pytest.raises(ValueError, match="ratio"):
        Classification(scenes, model=_model("vit_mini")).evaluate(ratio=7)


def test_hydra_is_not_needed() -> None:
    code = "import sys, ttf, ttf.tasks; print(sorted({m.split('.')[0] for m in sys.modules} & {'hydra'}))"
    done = fresh("-c", code)
    assert done.stdout == "[]\n", done.stderr[-2000:]


def test_few_images_make_an_interval() -> None:
    task = Classification(SceneClassification("test", 1000), model=_model("vit_mini"), limit=1)
    low, high = task.evaluate()["top1"]["ci95"]
    assert 0 <= low < high <= 100 and torch.isfinite(torch.tensor([low, high])).all()
