"""Pictures of W: shares, the order of rows and columns; values by hand."""

from __future__ import annotations

import pytest
import torch

from ttf.api import LayerTrace
from ttf.report import figures, matrices

PNG = b"\x89PNG"


def _layer(weights: torch.Tensor, sizes: list[float]) -> LayerTrace:
    W, kept = weights.unsqueeze(0), weights.argmax(-1).unsqueeze(0)
    return LayerTrace(3, kept, kept, W, W, torch.tensor([sizes]), (2, 2), 1)


# class token and four patches; patch 2 (of 1 ... 4) goes in halves into two tokens, patch 3 is dropped
SPLIT = torch.tensor([[1.0, 0, 0, 0, 0], [0, 0, 1 / 3, 0, 2 / 3], [0, 2 / 3, 1 / 3, 0, 0]])


def test_shares_divide_every_old_token_up():
    divided = figures.shares(SPLIT, torch.tensor([1.0, 1.5, 1.5]))
    expected = torch.tensor([[1.0, 0, 0, 0, 0], [0, 0, 0.5, 0, 1], [0, 1, 0.5, 0, 0]])
    torch.testing.assert_close(divided, expected)


def test_rows_that_share_a_patch_come_first():
    layer = _layer(SPLIT, [1.0, 1.5, 1.5])
    divided = figures.flow([layer], 0)
    assert figures.shared_patch(divided, layer.sizes[0], 1) == 2
    assert sorted(figures.sharing_rows(divided, layer, 0)) == [1, 2]
    pruned = _layer(torch.eye(5)[[0, 2, 4]], [1.0, 1.0, 0.0])
    assert figures.shared_patch(figures.flow([pruned], 0), pruned.sizes[0], 1) is None
    assert figures.sharing_rows(figures.flow([pruned], 0), pruned, 0) == [1]  # size 0 is padding


def test_a_matrix_is_sorted_into_a_diagonal():
    found = matrices.arrange(_layer(SPLIT, [1.0, 1.5, 1.5]))
    # new tokens by their old ones: class, {1, 2}, {2, 4}; old ones by their new ones, the dropped patch 3 behind 2
    torch.testing.assert_close(
        found.weights, torch.tensor([[1.0, 0, 0, 0, 0], [0, 2 / 3, 1 / 3, 0, 0], [0, 0, 1 / 3, 0, 2 / 3]])
    )
    assert found.dropped.tolist() == [False, False, False, True, False]
    assert found.shared == pytest.approx(1 / 5)


def test_padding_is_no_row_and_raster_order_stays():
    padded = torch.cat((torch.eye(5)[[0, 4, 1]], torch.zeros(1, 5)))
    for columns in ("sorted", "raster"):
        found = matrices.arrange(_layer(padded, [1.0, 1.0, 1.0, 0.0]), columns)
        assert torch.equal(found.weights, torch.eye(5)[[0, 1, 4]])
        assert found.shared == 0


@pytest.mark.parametrize("lengths", [(1,), (2, 3, 1), (1, 1)])
def test_the_picture_of_matrices_has_room_for_all_of_them(tmp_path, lengths):
    layer = _layer(SPLIT, [1.0, 1.5, 1.5])
    groups = {f"group {g}": {f"method {n}": layer for n in range(count)} for g, count in enumerate(lengths)}
    matrices.matrices(groups, torch.rand(8, 8, 3).numpy(), "a model", tmp_path / "m.png")
    assert (tmp_path / "m.png").read_bytes().startswith(PNG)
    with pytest.raises(ValueError, match="columns must be one of sorted, raster"):
        matrices.matrices(groups, torch.rand(8, 8, 3).numpy(), "", tmp_path / "n.png", "other")
