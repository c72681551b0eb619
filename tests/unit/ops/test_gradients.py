"""Gradients through the corners of the operator."""

from __future__ import annotations

import pytest
import torch

import ttf
from ttf.ops import transform


def test_a_dropped_token_has_no_gradient_and_spoils_none():
    cosines = torch.tensor([[[0.9, 0.8], [0.1, 0.2]]], requires_grad=True)  # the second token reaches nothing
    shares = transform.assign(cosines, kappa=0.5, tau=3.0, gate="mask")
    assert shares[0, 1].tolist() == [0.0, 0.0]
    shares[0, 0, 0].backward()
    assert cosines.grad is not None
    assert torch.isfinite(cosines.grad).all()
    assert cosines.grad[0, 0, 0] > 0 and cosines.grad[0, 1].abs().sum() == 0


def test_class_scores_without_a_class_token_are_refused_at_once(tiny):
    with pytest.raises(ValueError, match="needs a class token"):
        ttf.apply(tiny(class_token=False, global_pool="avg"), score_rows="class")


def test_compiled_models_are_not_silently_ignored(tiny):
    compiled = torch.compile(ttf.apply(tiny()))
    for call in (ttf.remove, lambda m: ttf.trace(m, torch.zeros(1, 3, 32, 32))):
        with pytest.raises(ValueError, match=r"wrapped by torch\.compile.*model\._orig_mod"):
            call(compiled)
