"""What is minimised: labels, a teacher, patches; and the matrices of Prune and Merge beside the weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import ttf
from ttf.calibration import calibrate, load_matrices, save_matrices
from ttf.training import Distillation, Recipe, Supervised, TokenLabelling, Trainer
from ttf.training.matrices import TrainableMatrices


def _bias(*values):
    """A model that answers every image with these logits."""
    model = nn.Linear(1, len(values))
    model.weight.data.zero_()
    model.bias.data = torch.tensor(values)
    return model


def test_supervised_takes_labels_and_soft_targets():
    objective, x = Supervised(_bias(math.log(3.0), 0.0), label_smoothing=0.2), torch.zeros(1, 1)
    expected = -(0.9 * math.log(0.75) + 0.1 * math.log(0.25))  # 0.2 spread over two classes
    assert objective(x, torch.tensor([0])).item() == pytest.approx(expected)
    assert objective(x, torch.tensor([[1.0, 0.0]])).item() == pytest.approx(expected)


def test_distillation_by_hand():
    """At T = 2 the teacher says 3/4 and 1/4 and the model 1/2 each; at T = 1 the model gives the label 1/2."""
    model = _bias(2 * math.log(3.0), 0.0)
    objective = Distillation(model, alpha=0.8, temperature=2.0)
    model.bias.data.zero_()
    divergence = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    expected = 0.8 * 4 * divergence + 0.2 * math.log(2)
    assert objective(torch.zeros(3, 1), torch.tensor([0, 0, 1])).item() == pytest.approx(expected)


def test_the_teacher_is_the_uncompressed_model_and_stays_as_it_is(tiny, images):
    model, x = tiny(), images()
    before = model(x).detach()
    objective = Distillation(model, alpha=1.0)
    ttf.apply(model, ratio=0.5)
    assert not torch.equal(model(x), before)
    assert set(objective.state_dict()) == {f"model.{key}" for key in model.state_dict()}
    loss = objective.train()(x, torch.tensor([0, 1]))
    student = model(x).log_softmax(1)
    torch.testing.assert_close(loss, F.kl_div(student, before.softmax(1), reduction="batchmean"))
    loss.backward()
    assert all(p.grad is not None for p in model.blocks.parameters())
    assert all(p.grad is None for p in objective._teacher[0].parameters())


@pytest.mark.parametrize("wrong", [{"alpha": 1.5}, {"alpha": -0.1}, {"temperature": 0.0}])
def test_impossible_distillation_is_refused(wrong):
    with pytest.raises(ValueError, match=r"objective\.alpha in \[0, 1\] and objective\.temperature > 0"):
        Distillation(_bias(0.0, 0.0), **wrong)


def test_token_labelling_reaches_model_and_head(tiny):
    model = tiny()
    objective = TokenLabelling(model, 4)
    objective(torch.randn(2, 3, 32, 32), torch.tensor([0, 1]), torch.zeros(2, 8, 8).long()).backward()
    assert model.head.weight.grad is not None and objective.head.weight.grad is not None
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.blocks.parameters())
    with pytest.raises(ValueError, match=r"set data\.train\.patch"):
        objective(torch.randn(2, 3, 32, 32), torch.tensor([0, 1]))


@pytest.fixture
def calibrated(tiny, images):
    model = tiny(depth=3)
    return model, calibrate(model, [(images(4), None)], keep_rate=0.5)


def test_matrices_train_beside_the_weights(calibrated, images, tmp_path):
    model, start = calibrated
    objective = Supervised(model)
    objective.matrices = TrainableMatrices(start)
    method = objective.matrices.method()
    ttf.apply(model, method=method, blocks=method.blocks)
    data = TensorDataset(images(8), torch.randint(0, 10, (8,)))
    recipe = Recipe(epochs=None, steps=5, batch_size=8, lr=1e-3, min_lr=1e-4, eval_every=5, workers=0)
    trainer = Trainer(objective, data, data, recipe, tmp_path)
    before = model.blocks[1].mlp.fc1.weight.clone()
    trainer.fit()
    for block in start.blocks:
        for part in ("merge", "recover"):
            moved = getattr(method.layers[block], part) - getattr(start.layers[block], part)
            assert 0 < moved.abs().max() <= 5 * 1.001e-3
        assert torch.equal(method.layers[block].mask, start.layers[block].mask)
    assert not torch.equal(model.blocks[1].mlp.fc1.weight, before)
    assert "matrices.merge_0" in trainer.state.load()["objective"]
    assert set(model.state_dict()) == set(ttf.remove(model).state_dict())


def test_matrices_come_back_from_their_file(calibrated, images, tmp_path):
    model, method = calibrated
    save_matrices(TrainableMatrices(method).method(), tmp_path / "method.safetensors")
    again = load_matrices(tmp_path / "method.safetensors")
    answers = [ttf.apply(model, method=m, blocks=m.blocks)(images()) for m in (method, again)]
    assert again.blocks == (0, 1, 2)
    assert torch.equal(*answers)


def test_a_file_without_matrices_is_refused(tmp_path):
    from ttf.models.weights import save_weights

    with pytest.raises(ValueError, match="no checkpoint at"):
        load_matrices(tmp_path / "absent.safetensors")
    save_weights(nn.Linear(1, 1), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="holds no matrices of Prune and Merge"):
        load_matrices(tmp_path / "model.safetensors")
