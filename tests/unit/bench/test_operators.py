"""Single operators are timed on the same work."""

from __future__ import annotations

import pytest
import torch

from ttf.bench import operators
from ttf.ops import native

compiled = pytest.mark.skipif(not native.loaded(), reason="not compiled: python -m ttf.ops.native")


@compiled
def test_every_way_is_timed_once_and_positive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "ATTENTION", ((2, 1, 9),))
    monkeypatch.setattr(operators, "TRANSFORM", ((2, 9, 8),))
    rows = operators.operators(rounds=3)
    assert [(row["operator"], row["shape"]) for row in rows] == 5 * [("attention", "2 x 1 x 9")] + 4 * [
        ("transform", "2 x 9 x 8")
    ]
    assert len({row["way"] for row in rows}) == 9
    assert all(row["median_ms"] >= 0 for row in rows)


def test_without_the_compiled_operators_it_says_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_loaded", False)
    with pytest.raises(ValueError, match=r"python -m ttf\.ops\.native"):
        operators.operators(rounds=1)


@compiled
def test_ways_give_the_same_answer() -> None:
    attention = operators._ways_of_attention(2, 2, 9)
    heads, sums = attention["sums in blocks"]()
    torch.testing.assert_close(sums, attention["sums of the whole map"]())
    torch.testing.assert_close(heads, attention["fused, no sums"]())
    torch.testing.assert_close(attention["sums by one operator"](), (heads, sums))
    transform = operators._ways_of_transform(2, 9, 8)
    torch.testing.assert_close(transform["plain"](), transform["in blocks"](), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(transform["plain"](), transform["one operator"](), atol=1e-4, rtol=1e-5)
