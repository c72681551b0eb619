"""Hourglass's clustering and reconstruction against the official blocks."""

from __future__ import annotations

import torch

from tests.golden import margins
from tests.golden.blocks import TOKEN, WEIGHT, Case
from ttf.methods import LayerView
from ttf.methods.hourglass import Hourglass, cluster, hard_labels, initial_centroids
from ttf.methods.uniform import UniformPool
from ttf.ops.grid import cell_labels
from ttf.ops.recovery import reconstruct, reconstruction_weights
from ttf.ops.reduction import gather_tokens


def _clustering(case: Case, x: torch.Tensor, grid: tuple[int, int], cells: tuple[int, int]) -> None:
    settings = case.settings
    options = (settings["n_iters"], settings["temperature"], settings["window_size"])
    affinity, weights, centroids = cluster(x, grid, cells, *options)
    torch.testing.assert_close(affinity, case["affinity_last"], **WEIGHT)
    torch.testing.assert_close(weights, case["W"], **WEIGHT)
    torch.testing.assert_close(centroids, case["centroids"], **TOKEN)
    torch.testing.assert_close(initial_centroids(x, grid, cells), case["init_centroids"], **TOKEN)
    assert torch.equal(cell_labels(grid, cells, x.device).expand(len(x), -1), case["init_label_map"])


def _clear(case: Case, x: torch.Tensor) -> None:
    """The nearest centroid of every token, and its ``recon_k`` nearest ones."""
    squares = margins.distances(x, case["centroids"]).square()
    noise = margins.DISTANCE * squares.amax()
    margins.assert_clear(margins.runner_up(-squares), noise)
    margins.assert_clear(margins.cut(-squares.flatten(0, 1), case.settings["recon_k"]), noise)


def _reconstruction(case: Case, x: torch.Tensor) -> None:
    settings, refined, centroids = case.settings, case["refined"], case["centroids"]
    temperature, neighbours = settings["temperature"], settings["recon_k"]
    torch.testing.assert_close(reconstruction_weights(x, centroids, temperature, neighbours), case["R"], **WEIGHT)
    some = reconstruct(x, centroids, refined, temperature, neighbours)
    torch.testing.assert_close(some, case["reconstructed"], **TOKEN)
    torch.testing.assert_close(reconstruct(x, centroids, refined, temperature), case["reconstructed_all"], **TOKEN)
    labels = hard_labels(x, centroids)
    assert torch.equal(labels, case["hard_labels"])
    assert torch.equal(gather_tokens(refined, labels), case["naive_unpooled"])


def _method(case: Case, view: LayerView, cells: tuple[int, int]) -> None:
    settings = case.settings
    keep = cells[0] * cells[1]
    options = (settings["n_iters"], settings["temperature"], settings["window_size"], settings["recon_k"])
    reduction = Hourglass(*options, cells=cells).reduce(view, keep)
    assert reduction.grid == cells
    torch.testing.assert_close(reduction.sizes, case["affinity_last"].sum(-1), **WEIGHT)
    torch.testing.assert_close(reduction.matrix(), case["W"], **WEIGHT)
    torch.testing.assert_close(reduction.back, case["R"], **WEIGHT)
    torch.testing.assert_close(reduction.down(view.x), case["centroids"], **TOKEN)
    torch.testing.assert_close(reduction.up(case["refined"]), case["reconstructed"], **TOKEN)
    torch.testing.assert_close(UniformPool(cells).reduce(view, keep).down(view.x), case["avg_pool"], **TOKEN)


def case(case: Case) -> None:
    settings, x = case.settings, case["feature_map"].flatten(2).transpose(1, 2)
    grid, cells = (settings["height"], settings["width"]), (settings["grid_h"], settings["grid_w"])
    _clear(case, x)
    _clustering(case, x, grid, cells)
    _reconstruction(case, x)
    _method(case, LayerView(x, 0, grid=grid), cells)


CHECKS = {"case": case}
