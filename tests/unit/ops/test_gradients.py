"""Gradients through the corners of the operator."""

from __future__ import annotations

import pytest
import torch

import ttf
from ttf.ops import transform
from ttf.ops.numerics import NotFiniteError, require_finite


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


def test_an_image_that_is_not_finite_is_named():
    x = torch.randn(3, 5, 4)
    require_finite(x, "the tokens")
    require_finite(torch.full((2, 3, 4), 3e38), "the tokens")  # only the sum is not
    x[1, 2, 3] = torch.nan
    with pytest.raises(NotFiniteError, match=r"the tokens of image 1 of the batch \(from 0\) contain NaN or infinite"):
        require_finite(x, "the tokens")
    with pytest.raises(NotFiniteError, match="the tokens of every image contain NaN .*: check the weights"):
        require_finite(torch.full((2, 3, 4), torch.inf), "the tokens")
