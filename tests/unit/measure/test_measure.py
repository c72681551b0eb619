"""Intervals, metrics, speed, rows on disk."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from ttf.measure import interleaved, params_m
from ttf.measure.memory import peak_mib
from ttf.metrics import intervals, measure
from ttf.results.store import SCHEMA, Store, read_json, signature
from ttf.tasks import classification
from ttf.tasks.classification import Predictions


def test_wilson_interval_of_a_known_case():
    low, high = intervals.proportion(877, 1000)
    assert low == pytest.approx(0.8552, abs=1e-4)
    assert high == pytest.approx(0.8959, abs=1e-4)
    assert intervals.proportion(0, 10)[0] == 0
    assert intervals.proportion(10, 10)[1] == pytest.approx(1)
    with pytest.raises(ValueError, match="without any image"):
        intervals.proportion(0, 0)


def test_interval_of_a_mean():
    low, high = intervals.mean(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert (low + high) / 2 == pytest.approx(2.5)
    assert high - low == pytest.approx(2 * 1.959964 * 1.2909944 / 2)


def _predictions(logits, features=None):
    features = torch.ones(len(logits), 2) if features is None else features
    return Predictions(torch.tensor(logits), features, torch.tensor([0, 1]), [])


def test_outcomes_and_their_means_by_hand():
    base = _predictions([[2.0, 0.0, 1.0], [0.0, 3.0, 0.0]])
    moved = _predictions([[0.0, 2.0, 1.0], [0.0, 3.0, 0.0]], torch.tensor([[1.0, 2.0], [1.0, 1.0]]))
    assert measure("cls", classification.outcomes(base, base))["top1"]["value"] == 100
    shift = measure("cls", classification.outcomes(moved, base))
    assert shift["top1"]["value"] == 50
    assert shift["top5"]["value"] == 100
    p, q = base.logits[0].softmax(0), moved.logits[0].softmax(0)
    assert shift["kl"]["value"] == pytest.approx((p * (p / q).log()).sum().item() / 2, rel=1e-5)
    assert shift["agreement"]["value"] == 50
    assert shift["class_token_error"]["value"] == pytest.approx(0.5 / 2**0.5, rel=1e-6)


def test_interleaved_times_every_model_and_compares_with_the_first():
    class Slow(nn.Module):
        def forward(self, x):
            for _ in range(40):
                x = x @ torch.eye(64)
            return x

    speeds = interleaved({"slow": Slow(), "fast": nn.Identity()}, torch.ones(4, 64), rounds=5)
    assert speeds["slow"].speed_up == 1
    assert speeds["fast"].speed_up > 1
    assert speeds["slow"].low_s <= speeds["slow"].median_s <= speeds["slow"].high_s
    with pytest.raises(ValueError, match="at least 5 rounds"):
        interleaved({"one": nn.Identity()}, torch.ones(1, 1), rounds=4)
    with pytest.raises(ValueError, match="empty batch"):
        interleaved({"one": nn.Identity()}, torch.ones(0, 1), rounds=5)


def test_params():
    assert params_m(nn.Linear(999, 1000)) == 1.0


def test_signature_ignores_the_order_of_keys():
    assert signature({"a": 1, "b": {"c": 2, "d": 3}}) == signature({"b": {"d": 3, "c": 2}, "a": 1})
    assert signature({"a": 1}) != signature({"a": 2})


def test_store_states(tmp_path):
    store, row = Store(tmp_path / "runs"), {"id": "x", "schema": SCHEMA}
    store.begin("x", {"tau": 150})
    assert store.finished("x") is None
    store.fail("x", {"tau": 150}, ValueError("no data"))
    assert store.failures()[0]["error"] == "no data"
    store.finish("x", row)
    assert store.finished("x") == row
    assert store.rows() == [row]
    assert store.failures() == []


def test_a_damaged_row_is_named_and_measured_again(tmp_path, capsys):
    (tmp_path / "x.json").write_text('{"id": ')
    assert Store(tmp_path).finished("x") is None
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(r"^left out: .*x\.json is no row of results.*remove it", line)
    (tmp_path / "y.json").write_text("[]")
    with pytest.raises(ValueError, match=r"y\.json is no row"):
        read_json(tmp_path / "y.json")


def test_peak_memory_is_what_is_alive_at_once():
    class Model(nn.Module):
        def forward(self, x):
            four = x.repeat(4, 1)  # 4 MiB
            eight = four + 1  # 4 MiB more
            del four
            return eight.sum(dim=0)

    assert peak_mib(Model(), torch.ones(256, 1024)) == pytest.approx(8, abs=0.1)
