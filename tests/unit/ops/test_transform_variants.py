"""The variants of Tables 7 and 8: pooled queries, Euclidean similarity, no assignment normalisation."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

import ttf
from ttf.methods import LayerView, TokenTransform
from ttf.ops.grid import pooling_matrix

GRID = (4, 6)


def view(prefix: int = 1, grid: tuple[int, int] | None = GRID) -> LayerView:
    x = torch.randn(2, prefix + 24, 5)
    return LayerView(x, prefix, scores=torch.rand(2, prefix + 24), grid=grid)


def literal(**options: object) -> TokenTransform:
    settings = {"selection": "informative", "tau": 5.0, **options}
    return TokenTransform(**settings)  # type: ignore[arg-type]


def by_hand(logits: torch.Tensor) -> torch.Tensor:
    """W of patch tokens from logits (n old, m new): column softmax (Eq. 5), then rows that sum to 1 (Eq. 6)."""
    shares = torch.softmax(logits, dim=-1).T
    return shares / shares.sum(1, keepdim=True)


@pytest.mark.parametrize("similarity", ["euclidean", "inverse"])
def test_distances_in_place_of_cosines(similarity):
    seen = view()
    reduction = literal(similarity=similarity, kappa=0.3).reduce(seen, 9)
    tokens = seen.x[0, 1:]
    distance = torch.cdist(tokens, tokens[reduction.kept[0, 1:] - 1], compute_mode="donot_use_mm_for_euclid_dist")
    logits = -distance if similarity == "euclidean" else 1 / (1 + distance)
    logits = logits if similarity == "euclidean" else torch.where(logits < 0.3, 0.0, logits)
    torch.testing.assert_close(reduction.matrix()[0, 1:, 1:], by_hand(5.0 * logits), rtol=1e-4, atol=1e-5)


def test_without_assignment_normalisation_weights_are_the_gated_cosines():
    seen = view()
    reduction = literal(normalise=False, kappa=0.2).reduce(seen, 9)
    units = F.normalize(seen.x[1, 1:], dim=-1)
    cosines = units[reduction.kept[1, 1:] - 1] @ units.T
    gated = torch.where(cosines < 0.2, 0.0, cosines)
    torch.testing.assert_close(reduction.matrix()[1, 1:, 1:], gated / gated.sum(1, keepdim=True), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(reduction.sizes[1, 1:], gated.sum(1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("isolate", [True, False])
def test_pooled_queries_make_a_coarser_grid(isolate):
    seen = view()
    reduction = literal(selection="pool", kappa=-1.0, isolate=isolate).reduce(seen, 7)
    assert reduction.grid == (2, 3) and reduction.kept is None
    assert reduction.matrix().shape == (2, 7, 25)
    cells = pooling_matrix(GRID, (2, 3), seen.x.device) @ seen.x[0, 1:]
    queries, tokens = (cells, seen.x[0, 1:]) if isolate else (torch.cat((seen.x[0, :1], cells)), seen.x[0])
    logits = 5.0 * F.normalize(tokens, dim=-1) @ F.normalize(queries, dim=-1).T
    first = 1 if isolate else 0
    torch.testing.assert_close(reduction.matrix()[0, first:, first:], by_hand(logits), rtol=1e-4, atol=1e-5)


def test_a_cell_that_nothing_goes_into_is_zero():
    for options in ({"gate": "mask"}, {"normalise": False}):
        matrix = literal(selection="pool", kappa=0.99, **options).reduce(view(), 7).matrix()
        assert matrix.isfinite().all() and (matrix.sum(-1) == 0).any()


def test_pooling_needs_a_grid():
    for grid in (None, (5, 5)):
        with pytest.raises(ValueError, match="lie on a grid"):
            literal(selection="pool").reduce(view(grid=grid), 7)


def test_pooling_goes_on_from_grid_to_grid(tiny, images):
    model, x = tiny(), images(2, 32, 64)
    model.set_input_size((32, 64))
    ttf.apply(model, selection="pool", ratio=0.5)
    sizes = [math.prod(cells) + 1 for cells in ((6, 11), (4, 8), (3, 6))]
    assert [layer.W.shape[1] for layer in ttf.trace(model, x)] == sizes
    assert model(x).isfinite().all()
