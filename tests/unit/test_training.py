"""The training loop: it learns, it resumes bit for bit, it refuses nonsense."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from ttf.training import Recipe, TokenLabelling, Trainer

QUICK = {"steps": 6, "batch_size": 4, "warmup_steps": 2, "eval_every": 3, "workers": 0}


class Loss(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x, y):
        return nn.functional.cross_entropy(self.model(x), y)


def _trainer(folder, **changes):
    torch.manual_seed(0)
    model = nn.Linear(5, 3)
    x, y = torch.randn(40, 5), torch.randint(0, 3, (40,))
    return Trainer(model, Loss(model), TensorDataset(x, y), TensorDataset(x, y), Recipe(**{**QUICK, **changes}), folder)


def test_it_learns_and_logs(tmp_path):
    trainer = _trainer(tmp_path, steps=10, lr=0.1, eval_every=5)
    rows = trainer.fit()
    assert [row["step"] for row in rows] == [5, 10]
    assert rows[1]["loss"] < rows[0]["loss"]
    assert (tmp_path / "log.csv").read_text().splitlines()[0] == "step,loss,lr,top1,seconds"


def test_a_resumed_run_is_bit_equal(tmp_path):
    whole = _trainer(tmp_path / "whole")
    whole.fit()
    first = _trainer(tmp_path / "parts")
    first.recipe = Recipe(**{**QUICK, "steps": 6})
    update, calls = first._update, []

    def stop_after_four(*batch):
        if len(calls) == 4:
            raise KeyboardInterrupt
        calls.append(1)
        return update(*batch)

    first._update = stop_after_four
    with pytest.raises(KeyboardInterrupt):
        first.fit()
    second = _trainer(tmp_path / "parts")
    with torch.no_grad():
        second.model.weight.zero_()
    second.resume()
    assert second.step == 3
    second.fit()
    assert torch.equal(second.model.weight, whole.model.weight)
    assert [r["loss"] for r in second.rows] == [r["loss"] for r in whole.rows]


def test_learning_rate():
    recipe = Recipe(steps=100, lr=1.0, min_lr=0.1, warmup_steps=10)
    assert recipe.lr_at(0) == pytest.approx(0.1)
    assert recipe.lr_at(9) == pytest.approx(1.0)
    assert recipe.lr_at(55) == pytest.approx(0.55)
    assert recipe.lr_at(100) == pytest.approx(0.1)


def test_nonsense_is_refused(tmp_path):
    for wrong in ({"steps": 0}, {"batch_size": 0}, {"eval_every": 0}, {"lr": 0.1, "min_lr": 0.2}):
        with pytest.raises(ValueError, match=r"train\."):
            Recipe(**wrong)
    trainer = _trainer(tmp_path)
    with torch.no_grad():
        trainer.model.bias.fill_(float("nan"))
    with pytest.raises(ValueError, match="the loss is nan at step 0"):
        trainer.fit()


def test_token_labelling_reaches_model_and_head(tiny):
    model = tiny()
    loss = TokenLabelling(model, 4)(torch.randn(2, 3, 32, 32), torch.tensor([0, 1]), torch.zeros(2, 8, 8).long())
    loss.backward()
    assert model.head.weight.grad is not None
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.blocks.parameters())
