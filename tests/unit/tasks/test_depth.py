"""Depth: which pixels count, images before the model, the task, its metrics and its training."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import ttf
from tests.depth_frames import SIZE, bts
from ttf import metrics
from ttf.data.depth_protocol import ERRORS, Protocol, whole_millimetres
from ttf.data.depth_scenes import SceneDepth
from ttf.data.nyuv2 import nyuv2
from ttf.data.reading import BadImageError
from ttf.metrics.blocks import resampled_means
from ttf.models.constant_depth import ConstantDepth
from ttf.tasks import Depth
from ttf.tasks.resizing import Resizing
from ttf.training import Recipe, ScaleInvariant

WHOLE = Protocol(crop=None)
RNG = np.random.default_rng(0)


# protocol


def test_the_eigen_crop_and_the_bounds():
    truth = torch.full((480, 640), 2.0)
    valid = Protocol().valid(truth)
    assert valid.nonzero().amin(0).tolist() == [45, 41] and valid.nonzero().amax(0).tolist() == [470, 600]
    assert int(valid.sum()) == 426 * 560
    row = torch.tensor([[0.0, 0.001, 0.002, 9.999, 10.0, 11.0, math.inf, math.nan]])
    assert WHOLE.valid(row).tolist() == [[False, False, True, True, False, False, False, False]]


def test_kittis_crop():
    rows, columns = Protocol(crop="garg", max_depth=80.0).window((352, 1216))
    assert (rows, columns) == (slice(143, 349), slice(43, 1172))


def test_crops_of_other_sizes_and_settings_that_hold_nothing_are_refused():
    with pytest.raises(ValueError, match="the Eigen crop is for images of 480x640 pixels, and this one has 96x128"):
        Protocol().valid(torch.ones(96, 128))
    with pytest.raises(ValueError, match="crop must be one of eigen, garg"):
        Protocol(crop="middle")
    with pytest.raises(ValueError, match="need 0 < min_depth < max_depth"):
        Protocol(max_depth=0.0)


def test_errors_of_one_image_by_hand():
    truth, predicted = torch.tensor([[1.0, 2.0, 4.0, 0.0]]), torch.tensor([[1.0, 3.0, 2.0, 7.0]])
    found = dict(zip(ERRORS, WHOLE.errors(predicted, truth).tolist(), strict=True))
    e = [0.0, math.log(1.5), math.log(0.5)]
    square, mean = sum(x * x for x in e) / 3, sum(e) / 3
    expected = {
        "d1": 1 / 3,
        "d2": 2 / 3,
        "d3": 2 / 3,
        "abs_rel": 1 / 3,
        "sq_rel": 0.5,
        "rmse": math.sqrt(5 / 3),
        "rmse_log": math.sqrt(square),
        "silog": 100 * math.sqrt(square - mean**2),
        "log10": (math.log10(1.5) + math.log10(2)) / 3,
    }
    assert found == pytest.approx(expected, rel=1e-6)


def test_predictions_are_clamped_and_truncated_where_asked():
    truth = torch.full((1, 3), 5.0)
    predicted = torch.tensor([[0.0, math.inf, 5.0009]])
    assert WHOLE.scored(predicted).tolist() == [[pytest.approx(1e-3), 10.0, pytest.approx(5.0009)]]
    assert Protocol(crop=None, truncate=True).scored(predicted)[0, 2].item() == pytest.approx(5.0)
    assert whole_millimetres(torch.tensor([1.2349, 70.0, -1.0])).tolist() == [1234, 65535, 0]
    assert WHOLE.errors(predicted, truth)[3].item() == pytest.approx((0.9998 + 1.0 + 0.00018) / 3, abs=1e-5)


def test_nan_predictions_other_sizes_and_frames_without_depth():
    truth = torch.ones(2, 3)
    with pytest.raises(ValueError, match="depths that are NaN: check weights and dtype"):
        WHOLE.errors(torch.full((2, 3), math.nan), truth)
    with pytest.raises(ValueError, match="differ in size: 3x2 and 2x3"):
        WHOLE.errors(torch.ones(3, 2), truth)
    assert WHOLE.errors(truth, torch.zeros(2, 3)) is None


# images before the model


def test_the_published_resize():
    assert Resizing().size((480, 640)) == (480, 640)
    assert Resizing().size((960, 1280)) == (480, 640)
    assert Resizing().size((481, 641)) == (480, 640)
    assert Resizing().size((375, 1242)) == (480, 1600)  # of 480/375 and 640/1242 the former is nearer to 1
    assert Resizing(352, 1216).size((375, 1242)) == (352, 1216)
    image = Image.fromarray(RNG.integers(0, 255, (480, 640, 3), np.uint8))
    x = Resizing().prepare(image)
    assert torch.equal(x, (torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255 - 0.5) / 0.5)


def test_wrong_sizes_are_refused():
    with pytest.raises(ValueError, match="height and width must be multiples of 32, got 470 and 640"):
        Resizing(height=470)
    with pytest.raises(ValueError, match="multiple must be at least 1"):
        Resizing(multiple=0)
    with pytest.raises(ValueError, match="too narrow"):
        Resizing().size((5000, 3))


class Flat(nn.Module):
    """Predicts one depth everywhere, at the size of its input."""

    def __init__(self, depth: float = 2.0) -> None:
        super().__init__()
        self.depth = nn.Parameter(torch.tensor(depth))
        self.pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "input_size": (3, 32, 32)}

    def forward(self, x: Tensor) -> Tensor:
        return self.depth.expand(len(x), *x.shape[-2:])


@pytest.mark.parametrize("size", [(480, 640), (333, 517)], ids=str)
def test_predictions_come_back_at_the_size_of_the_image(size: tuple[int, int]):
    resizing = Resizing(64, 64, 32)
    x = resizing.prepare(Image.fromarray(np.zeros((*size, 3), np.uint8)))
    assert resizing.depth(Flat(), x, size).shape == size


# the task


def test_a_task_without_hydra(tmp_path: Path):
    bts(tmp_path)
    task = Depth(nyuv2(tmp_path, block=2), Flat(1.5), resizing=Resizing(64, 64, 32))
    found = task.outcomes(Flat(1.5), None, None, "").images
    assert found["block"].tolist() == [0, 0] and found["deviation"].tolist() == [0, 0]
    values = task.metrics(found)
    assert set(values) == {*ERRORS, "deviation"}
    assert values["d1"]["value"] == pytest.approx(0.5) and values["abs_rel"]["value"] == pytest.approx(0.2, abs=1e-6)


def test_a_frame_without_depth_stops_or_is_skipped(tmp_path: Path):
    bts(tmp_path)
    empty = tmp_path / "official_splits" / "test" / "kitchen" / "sync_depth_00001.png"
    depth = np.zeros(SIZE, np.uint16)
    depth[:40] = 900  # outside of the crop
    Image.fromarray(depth).save(empty)
    with pytest.raises(BadImageError, match=r"sync_depth_00001\.png.*no depth was measured"):
        Depth(nyuv2(tmp_path)).outcomes(Flat(), None, None, "")
    found = Depth(nyuv2(tmp_path), on_bad_image="skip").outcomes(Flat(), None, None, "")
    assert found.count == 1 and found.bad == ["sync_depth_00001.png"]


def test_nan_predictions_stop_an_evaluation(tmp_path: Path):
    bts(tmp_path)
    with pytest.raises(ValueError, match="depths that are NaN"):
        Depth(nyuv2(tmp_path)).outcomes(Flat(math.nan), None, None, "")


def test_workers_are_refused():
    with pytest.raises(ValueError, match="leave workers=2 out"):
        Depth(SceneDepth("test", 4), workers=2)


# metrics


def _outcomes(values: Tensor, block: Tensor | None = None) -> dict[str, Tensor]:
    found = {name: values for name in (*ERRORS, "deviation")}
    return found if block is None else {**found, "block": block}


def test_intervals_of_frames_that_repeat_each_other_do_not_shrink():
    values = torch.randn(12, generator=torch.Generator().manual_seed(0))
    alone = metrics.named("depth", "abs_rel").estimate(_outcomes(values))
    copies = metrics.named("depth", "abs_rel").estimate(
        _outcomes(values.repeat_interleave(8), torch.arange(12).repeat_interleave(8))
    )
    assert (copies.value, copies.low, copies.high) == pytest.approx((alone.value, alone.low, alone.high), abs=1e-6)
    blind = metrics.named("depth", "abs_rel").estimate(_outcomes(values.repeat_interleave(8)))
    assert blind.high - blind.low < 0.5 * (copies.high - copies.low)
    assert resampled_means(values, torch.zeros(12, dtype=torch.int64)).std().item() < 1e-12  # one block


def test_paired_differences_and_their_test():
    block = torch.arange(16).repeat_interleave(4)
    base = torch.rand(64, generator=torch.Generator().manual_seed(1))
    metric = metrics.named("depth", "abs_rel")
    lost = metric.lost_between(_outcomes(base, block), _outcomes(base + 0.01, block))
    assert (lost.value, lost.low, lost.high) == pytest.approx((0.01, 0.01, 0.01), abs=1e-6)
    assert metric.test(_outcomes(base, block), _outcomes(base + 0.01, block)) < 1e-3
    assert metric.test(_outcomes(base, block), _outcomes(base, block)) == 1
    with pytest.raises(ValueError, match="in another order"):
        metric.difference(_outcomes(base, block), _outcomes(base, block.flip(0)))


# training


def test_the_scale_invariant_loss():
    class Given(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, 0]

    depth = torch.tensor([[[1.0, 2.0, 0.0]]])
    predicted = torch.tensor([[[2.0, 4.0, 9.0]]]).unsqueeze(1)
    e = math.log(2)
    assert ScaleInvariant(Given(), 0.0)(predicted, depth).item() == pytest.approx(e, rel=1e-5)
    assert ScaleInvariant(Given(), 0.85)(predicted, depth).item() == pytest.approx(e * math.sqrt(0.15), rel=1e-5)
    with pytest.raises(ValueError, match="without a single measured depth"):
        ScaleInvariant(Given())(predicted, torch.zeros(1, 1, 3))
    with pytest.raises(ValueError, match="objective.variance"):
        ScaleInvariant(Given(), 2.0)


def test_some_weights_learn_more_slowly():
    model = nn.ModuleDict({"model": nn.ModuleDict({"old": nn.Linear(2, 2), "new": nn.Linear(2, 2)})})
    options: dict[str, Any] = {"steps": 1, "epochs": None, "batch_size": 1, "weight_decay": 0.1}
    groups = Recipe(**options, lr_factors={"old": 0.1}).optimizer(model).param_groups
    assert [(g["factor"], g["weight_decay"]) for g in groups] == [(1.0, 0.1), (1.0, 0.0), (0.1, 0.1), (0.1, 0.0)]
    assert groups[2]["params"][0] is model["model"]["old"].weight
    with pytest.raises(ValueError, match="no weights begin with older"):
        Recipe(**options, lr_factors={"older": 0.1}).optimizer(model)


def test_a_constant_depth_is_measured_like_any_model():
    model = ConstantDepth(2.0, (32, 32))
    assert ttf.measure.gmacs(model, (3, 32, 32)) == 0
    assert model(torch.rand(2, 3, 32, 32)).unique().tolist() == [2.0]
