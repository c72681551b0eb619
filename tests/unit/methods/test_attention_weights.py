"""Token Transforming with means weighted by attention, and what that does to the identity of rows."""

from __future__ import annotations

import pytest
import torch

from ttf.methods import LayerView, TokenTransform, build
from ttf.tasks.identity import compression_settings


@pytest.mark.parametrize("sized", [False, True])
@pytest.mark.parametrize("options", [{}, {"isolate": False}, {"selection": "informative"}])
def test_rows_of_w_are_shares_times_size_times_attention(sized: bool, options: dict[str, object]) -> None:
    x, scores = torch.randn(2, 20, 6) + 0.5, torch.rand(2, 20) + 0.1
    sizes = torch.randint(1, 5, (2, 20)).float() if sized else None
    if sizes is not None:
        sizes[:, :1] = 1.0
    view = LayerView(x, 1, scores=scores, sizes=sizes)
    plain = build("token_transform", **options).reduce(view, 9)
    ours = build("token_transform", weights="attention", **options).reduce(view, 9)
    assert torch.equal(ours.kept, plain.kept)
    torch.testing.assert_close(ours.sizes, plain.sizes)
    first = 0 if options.get("isolate") is False else 1
    weighted = plain.matrix()[:, first:] * scores.unsqueeze(1)
    expected = weighted / weighted.sum(2, keepdim=True)
    torch.testing.assert_close(ours.matrix()[:, first:], expected, atol=1e-5, rtol=0)
    y, reduction = TokenTransform(weights="attention")(view, 9)
    torch.testing.assert_close(y, reduction.matrix() @ x, atol=1e-5, rtol=1e-5)


def test_an_added_option_leaves_rows_as_they_were() -> None:
    options = {"method": "token_transform", "ratio": 0.7}
    before = compression_settings(options)["method"]
    assert "weights" not in before and "normalise" in before
    assert compression_settings({**options, "weights": "sizes"})["method"] == before
    assert compression_settings({**options, "weights": "attention"})["method"]["weights"] == "attention"


def test_wrong_weights() -> None:
    with pytest.raises(ValueError, match="sizes, attention"):
        TokenTransform(weights="equal")  # type: ignore[arg-type]
