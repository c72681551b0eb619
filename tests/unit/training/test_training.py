"""The training loop: it learns, it resumes bit for bit, it refuses nonsense."""

from __future__ import annotations

import resource

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import ttf
from ttf.training import Recipe, Supervised, Trainer
from ttf.training.data import Mixing
from ttf.training.evaluation import mean_loss
from ttf.training.loop import make_engine
from ttf.training.state import StateFolder

QUICK = {
    "epochs": None,
    "steps": 6,
    "batch_size": 4,
    "lr": 1e-3,
    "min_lr": 1e-5,
    "weight_decay": 0.05,
    "warmup_steps": 2,
    "eval_every": 3,
    "workers": 0,
}


def _trainer(folder, mixing=None, model=None, **changes):
    torch.manual_seed(0)
    model = model or nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Dropout(), nn.Linear(8, 3))
    data = TensorDataset(torch.randn(40, 3, 2, 2), torch.randint(0, 3, (40,)))
    return Trainer(Supervised(model), data, data, Recipe(**{**QUICK, **changes}), folder, mixing=mixing)


def _weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def _stopped(folder, calls, **changes):
    """A trainer that was interrupted after so many steps."""
    trainer = _trainer(folder, **changes)
    update, done = trainer._update, []

    def stop(batches):
        if len(done) == calls:
            raise KeyboardInterrupt
        done.append(1)
        return update(batches)

    trainer._update = stop
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    return trainer


def test_it_learns_and_logs(tmp_path):
    trainer = _trainer(tmp_path, steps=40, lr=0.1, eval_every=20)
    rows = trainer.fit()
    assert [row["step"] for row in rows] == [20, 40]
    assert rows[1]["loss"] < rows[0]["loss"]
    header, *lines = (tmp_path / "log.csv").read_text().splitlines()
    assert header == "step,loss,lr,top1,seconds" and len(lines) == 2


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_a_resumed_run_is_bit_equal(tmp_path, mode):
    """Stopped within an epoch, with mixup, cutmix and dropout, in parts of a batch; the checkpoint is at step 3."""
    changes = {"steps": 17, "mode": mode, "accumulate": 2, "lr": 0.01, "mixing": Mixing(3, images=2)}
    whole = _trainer(tmp_path / "whole", **changes)
    whole.fit()
    assert _stopped(tmp_path / "parts", 5, **changes).step == 5
    second = _trainer(tmp_path / "parts", **changes)
    second.resume()
    assert second.step == 3
    torch.manual_seed(99)
    second.fit()
    assert torch.equal(_weights(second), _weights(whole))
    assert [r["loss"] for r in second.rows] == [r["loss"] for r in whole.rows]
    assert (whole.batches.per_epoch, len(whole.rows)) == (10, 6)


def test_the_best_weights_are_kept_whether_interrupted_or_not(tmp_path):
    """The rate is far too high: the loss on the test set is lowest in the middle, or at the start."""
    changes = {"steps": 12, "lr": 3.0, "warmup_steps": 8, "keep": "best", "eval_every": 2}
    whole = _trainer(tmp_path / "whole", **changes)
    losses = [row["test_loss"] for row in whole.fit()]
    kept = whole.keep_best()
    assert kept["test_loss"] <= min(losses) < losses[-1]
    assert mean_loss(whole.core, whole.test, whole.engine, 40) == pytest.approx(kept["test_loss"], abs=1e-5)
    _stopped(tmp_path / "parts", 9, **changes)
    second = _trainer(tmp_path / "parts", **changes)
    second.resume()
    second.fit()
    assert second.keep_best() == kept and torch.equal(_weights(second), _weights(whole))


def test_weights_that_never_get_better_stay_as_they_were(tmp_path):
    trainer = _trainer(tmp_path, lr=50.0, keep="best")
    before = _weights(trainer)
    trainer.fit()
    assert not torch.equal(_weights(trainer), before)
    assert trainer.keep_best()["kept_step"] == 0
    assert torch.equal(_weights(trainer), before)


def test_ctrl_c_says_where_it_goes_on(tmp_path, capsys):
    _stopped(tmp_path, 4)
    assert "interrupted at step 4: the same command goes on from step 3" in capsys.readouterr().out


def test_parts_of_a_batch_give_the_gradient_of_the_whole(tmp_path, tiny):
    """Float32 sums in another order: equal to 1e-5 of the largest gradient."""

    def gradients(accumulate):
        torch.manual_seed(0)
        model = ttf.apply(tiny(), ratio=0.5)
        data = TensorDataset(torch.randn(8, 3, 32, 32), torch.randint(0, 10, (8,)))
        recipe = Recipe(**{**QUICK, "steps": 1, "batch_size": 8, "accumulate": accumulate})
        folder = tmp_path / str(accumulate)
        trainer = Trainer(Supervised(model), data, data, recipe, folder, mixing=Mixing(10, images=4))
        trainer.optimizer.zero_grad = lambda **_: None
        trainer.fit()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    whole, parts = gradients(1), gradients(4)
    assert (whole - parts).abs().max() < 1e-5 * whole.abs().max()


def test_evaluation_mode_leaves_batch_statistics_alone(tmp_path):
    def statistics(mode):
        model = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 3))
        _trainer(tmp_path / mode, model=model, mode=mode).fit()
        return model[0].num_batches_tracked.item(), model[2].weight

    (frozen, _), (updated, _) = statistics("eval"), statistics("train")
    assert (frozen, updated) == (0, 6)


def test_learning_rate():
    recipe = Recipe(epochs=None, steps=100, lr=1.0, min_lr=0.1, warmup_steps=10)
    expected = {0: 0.1, 9: 1.0, 55: 0.55, 100: 0.1}
    assert {step: pytest.approx(recipe.lr_at(step, 100)) for step in expected} == expected


def test_the_default_recipe_is_that_of_evit():
    recipe = Recipe()
    total = recipe.total_steps(1281167)
    assert total == 30 * 625
    assert (recipe.lr_at(0, total), recipe.lr_at(total, total)) == (2e-5, pytest.approx(2e-6))
    assert Recipe(lr_reference_batch=512).peak_lr == pytest.approx(8e-5)


def test_only_matrices_decay():
    groups = Recipe(weight_decay=0.3).optimizer(nn.Linear(2, 2)).param_groups
    assert [(g["weight_decay"], [p.ndim for p in g["params"]]) for g in groups] == [(0.3, [2]), (0.0, [1])]


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"batch_size": 0},
        {"eval_every": 0},
        {"accumulate": 0},
        {"min_lr": 0.2},
        {"epochs": 3},
        {"steps": None},
        {"mode": "test"},
        {"precision": "int8"},
        {"clip_grad": 0},
        {"lr_reference_batch": 0},
    ],
)
def test_values_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=r"train\."):
        Recipe(**{**QUICK, **wrong})


def test_batches_that_do_not_divide_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"does not divide into 1 processes with train\.accumulate=3: .* multiple of 3"
    ):
        _trainer(tmp_path, accumulate=3)
    with pytest.raises(ValueError, match="more than the 40 images"):
        _trainer(tmp_path, batch_size=41)
    with pytest.raises(ValueError, match="use an even number"):
        _trainer(tmp_path, mixing=Mixing(3), accumulate=4).fit()


def test_an_engine_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="device must be auto or cpu"):
        make_engine(device="tpu")
    with pytest.raises(ValueError, match="fp16 needs a GPU"):
        make_engine("fp16", "cpu")


def test_a_loss_that_is_not_finite_stops_before_the_weights(tmp_path):
    trainer = _trainer(tmp_path)
    trainer.model[3].bias.data[0] = float("inf")
    before = _weights(trainer).clone()
    with pytest.raises(ValueError, match="the loss is nan at step 0"):
        trainer.fit()
    assert torch.equal(_weights(trainer), before)


def test_bfloat16_trains_in_another_precision(tmp_path):
    full, mixed = _trainer(tmp_path / "full"), _trainer(tmp_path / "bf16", precision="bf16")
    full.fit()
    mixed.fit()
    assert mixed.model[1].weight.dtype == torch.float32
    assert not torch.equal(_weights(full), _weights(mixed))
    torch.testing.assert_close(_weights(full), _weights(mixed), rtol=0, atol=6 * 1e-3)  # six steps of at most lr


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path):
    state = StateFolder(tmp_path / "state")
    state.save({"step": 1})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(ValueError, match="the disk may be full"):
            state.save({"step": 2, "weights": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert state.load() == {"step": 1}
    assert [f.name for f in state.folder.iterdir()] == ["state.pt"]


def test_a_folder_belongs_to_one_run(tmp_path):
    state = StateFolder(tmp_path / "state")
    state.claim({"train": {"lr": 1, "steps": 2}, "model": "a"})
    state.claim({"train": {"lr": 1, "steps": 2}, "model": "a"})
    assert [f.name for f in tmp_path.rglob("*")] == ["state", "identity.json"]
    with pytest.raises(ValueError, match=r"another model, train\.lr: choose another output=FOLDER"):
        state.claim({"train": {"lr": 3, "steps": 2}, "model": "b"})


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "state").write_text("a file where the folder goes")
    with pytest.raises(ValueError, match="choose another folder"):
        StateFolder(tmp_path / "state").claim({})


def test_a_damaged_checkpoint_is_refused(tmp_path):
    trainer = _trainer(tmp_path)
    trainer.fit()
    content = trainer.state.file.read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"no checkpoint"):
        trainer.state.file.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"state\.pt cannot be read .* to start again"):
            trainer.resume()
