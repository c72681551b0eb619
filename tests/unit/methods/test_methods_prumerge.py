"""PruMerge, Prune and Merge and its calibration pass: what the reference data does not show."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import ttf
from ttf.calibration import calibrate, token_importance
from ttf.methods import LayerView
from ttf.methods.prumerge import PruMerge, attentive_count, grid_positions, outlier_ratio
from ttf.methods.prune_and_merge import LayerMatrices, PruneAndMerge, group_ends, matrices

SETTINGS = [{}, {"plus": True}, {"outliers": True}, {"plus": True, "outliers": True}]


def _view(batch: int = 2, n: int = 49, prefix: int = 1, channels: int = 12, peak: float = 3.0) -> LayerView:
    keys = torch.randn(batch, prefix + n, channels)
    query = peak * keys[:, prefix + 5] + torch.randn(batch, channels)
    return LayerView(torch.randn(batch, prefix + n, channels), prefix, class_query=query, flat_keys=keys)


def _one(view: LayerView, image: int) -> LayerView:
    chosen = slice(image, image + 1)
    return LayerView(
        view.x[chosen], view.prefix, class_query=view.class_query[chosen], flat_keys=view.flat_keys[chosen]
    )


@pytest.mark.parametrize("prefix", [1, 2, 5])
@pytest.mark.parametrize("room", [1, 2, 17, 48])
def test_prumerge_gives_as_many_tokens_as_asked(prefix: int, room: int):
    view = _view(prefix=prefix)
    plain, plus = (PruMerge(plus=plus).reduce(view, prefix + room).matrix() for plus in (False, True))
    assert plain.shape == (2, prefix + room, 49 + prefix)
    assert prefix < plus.shape[1] <= prefix + room
    for weights in (plain, plus):
        assert torch.equal(weights[:, :prefix], torch.eye(prefix, 49 + prefix).expand(2, -1, -1))
        assert not weights[:, prefix:, :prefix].any()


@pytest.mark.parametrize("options", SETTINGS[:2])
def test_prumerge_of_a_batch_is_that_of_its_images(options: dict[str, bool]):
    view, method = _view(batch=3), PruMerge(**options)
    alone = [method.reduce(_one(view, image), 20).matrix() for image in range(3)]
    torch.testing.assert_close(method.reduce(view, 20).matrix(), torch.cat(alone))


@pytest.mark.parametrize("outliers", [False, True])
def test_prumerge_plus_counts_fit_the_budget(outliers: bool):
    for budget in range(49):
        count = attentive_count(49, budget, outliers)
        assert count + len(grid_positions(49, count / 49, outliers)) <= budget
        more = count + 1
        assert more + len(grid_positions(49, more / 49, outliers)) > budget
    assert PruMerge(True, outliers).reduce(_view(), 30).matrix().shape[1] <= 30


def test_prumerge_with_equal_attention_has_no_outliers():
    assert outlier_ratio(torch.full((2, 49), 0.02)) == 0.0
    view = _view()
    flat = LayerView(view.x, 1, class_query=torch.zeros(2, 12), flat_keys=view.flat_keys)
    for plus in (False, True):
        weights = PruMerge(plus=plus, outliers=True).reduce(flat, 30).matrix()
        assert weights.shape == (2, 2, 50)
        torch.testing.assert_close(weights[:, 1, 1:], torch.full((2, 49), 1 / 50))


def test_prumerge_takes_fewer_neighbours_where_there_are_fewer():
    view = _view(n=9)
    everything = PruMerge(neighbours=1000).reduce(view, 6).matrix()
    assert (everything[:, 1:-1, 1:] > 0).all()
    torch.testing.assert_close(PruMerge(neighbours=8).reduce(view, 6).matrix(), everything)


def test_padding_of_prumerge_plus_is_never_seen_again():
    view, method = _view(batch=4), PruMerge(plus=True, outliers=True)
    first = method.reduce(view, 40)
    padding = first.sizes == 0
    assert padding.any()
    assert not first.matrix()[padding].any()
    assert first.matrix()[~padding].any(dim=-1).all()
    keys, x = first.down(view.flat_keys), first.down(view.x)
    keys[padding] = 7.0  # must not matter
    second = LayerView(x, 1, first.sizes, class_query=view.class_query, flat_keys=keys)
    reduction = method.reduce(second, x.shape[1] - 2)
    live = reduction.matrix()[reduction.sizes > 0].any(dim=0)
    assert not reduction.matrix().transpose(1, 2)[padding].any()
    assert live.any()


@pytest.mark.parametrize("options", SETTINGS)
def test_prumerge_in_a_model(tiny, images, options: dict[str, bool]):
    model = ttf.apply(tiny(), method=PruMerge(**options), ratio=0.5)
    assert torch.isfinite(model(images())).all()
    assert torch.isfinite(model.bfloat16()(images().bfloat16())).all()


@pytest.mark.parametrize("plus", [False, True])
def test_prumerge_compiles_as_one_graph(plus: bool):
    view, method = _view(), PruMerge(plus=plus)

    def down(x: Tensor, query: Tensor, keys: Tensor) -> Tensor:
        return method.reduce(LayerView(x, 1, class_query=query, flat_keys=keys), 20).down(x)

    arguments = (view.x, view.class_query, view.flat_keys)
    compiled = torch.compile(down, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*arguments), down(*arguments))


def test_bad_options():
    with pytest.raises(ValueError, match="neighbours"):
        PruMerge(neighbours=0)
    with pytest.raises(ValueError, match="calibrate"):
        PruneAndMerge()
    with pytest.raises(ValueError, match="recover"):
        LayerMatrices(torch.eye(2, 3), torch.eye(2, 3), torch.ones(3))
    with pytest.raises(ValueError, match="mask"):
        LayerMatrices(torch.eye(2, 3), torch.eye(3, 2), torch.ones(2))
    for rates in ({"keep_rate": 0.0}, {"keep_rate": 1.5}, {"prune_rate": 1.0}, {"prune_rate": -0.5}):
        with pytest.raises(ValueError, match="keep_rate"):
            matrices({0: torch.rand(16)}, 4, **rates)
    with pytest.raises(ValueError, match="zero or not finite"):
        matrices({0: torch.zeros(16)}, 4)


def test_groups_end_half_way_or_with_the_row():
    assert group_ends(torch.tensor([0, 3, 5, 14, 15]), 5).tolist() == [2, 4, 10, 15]
    assert group_ends(torch.tensor([1]), 5).tolist() == []


@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
def test_merge_matrices_on_a_grid_that_is_no_square(prefix: int):
    made = matrices({2: torch.rand(24), 5: torch.rand(24)}, columns=6, prefix=prefix)
    for layer in made.values():
        own, patches = layer.merge[:prefix], layer.merge[prefix:, prefix:]
        assert torch.equal(own, torch.eye(prefix, 24 + prefix))
        torch.testing.assert_close(patches.amax(1), torch.ones(len(patches)))
        assert ((patches > 0).sum(0) == layer.mask[prefix:]).all()
        torch.testing.assert_close(layer.merge @ layer.recover, torch.eye(len(layer.merge)))
    assert sum(len(layer.merge) - prefix for layer in made.values()) == 2 * int(24 * 0.6)


def test_a_layer_without_centres_keeps_its_strongest_token():
    strong = torch.rand(16) + 10
    made = matrices({0: strong, 9: strong}, 4, keep_rate=0.2, decay=0.1)
    assert len(made[9].merge) == 2
    assert torch.isfinite(made[9].recover).all()


def _ranks_by_hand(model, images: Tensor, labels: Tensor) -> list[Tensor]:
    """Through timm's own unfused attention, with hooks on the maps, image by image."""
    maps: list[Tensor] = []
    handles = []
    for block in model.blocks:
        block.attn.fused_attn = False

        def keep(module: object, given: tuple[Tensor], out: Tensor) -> None:
            out.retain_grad()
            maps.append(out)

        handles.append(block.attn.attn_drop.register_forward_hook(keep))
    F.cross_entropy(model(images), labels).backward()
    for handle in handles:
        handle.remove()
    batch, heads, tokens, _ = maps[0].shape
    ranks = []
    for kept in maps:
        columns = torch.zeros(tokens)
        for image in range(batch):
            for head in range(heads):
                columns += (kept[image, head] * kept.grad[image, head]).detach().sum(0)
        ranks.append(columns.abs()[1:] / (batch * heads * tokens))
    return ranks


def test_importance_is_that_of_timms_own_maps(tiny, images):
    model, labels = tiny(), torch.tensor([3, 7, 1])
    batches = [(images(3), labels), (images(3, seed=1), labels)]
    ranks, grid = token_importance(model, batches)
    parts = [_ranks_by_hand(copy.deepcopy(model), *batch) for batch in batches]
    assert grid == (8, 8) and list(ranks) == list(range(12))
    for block, rank in ranks.items():
        torch.testing.assert_close(rank, parts[0][block] + parts[1][block], rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("compressed", [False, True])
def test_calibration_leaves_the_model_as_it_was(tiny, images, compressed: bool):
    model = tiny(drop_rate=0.1).train()
    model.blocks[3].eval()
    model.blocks[5].requires_grad_(False)
    plain = calibrate(copy.deepcopy(model), [(images(), None)], blocks=(2, 4))
    if compressed:
        ttf.apply(model, "evit", ratio=0.5)
    kind, container, modes = type(model), model.blocks, [module.training for module in model.modules()]
    with torch.no_grad():
        method = calibrate(model, [(images(), None)], blocks=(4, 2))
    assert type(model) is kind and model.blocks is container
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    assert method.blocks == (2, 4)
    for block in method.blocks:  # of the uncompressed model in evaluation mode, whatever it was
        torch.testing.assert_close(method.layers[block].merge, plain.layers[block].merge)


def test_calibrated_model_runs_and_is_removed_bit_for_bit(tiny, images):
    model, labels = tiny(depth=4), torch.tensor([3, 7])
    expected = model(images())
    method = calibrate(model, [(images(), labels)], keep_rate=0.5)
    ttf.apply(model, method=method, blocks=method.blocks)
    out = model(images())
    assert not torch.allclose(out, expected)
    torch.testing.assert_close(pickle.loads(pickle.dumps(model))(images()), out)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(images()), out)
    assert torch.isfinite(copy.deepcopy(model).bfloat16()(images().bfloat16())).all()
    assert "tensor" not in repr(model)
    assert torch.equal(ttf.remove(model)(images()), expected)


def test_frozen_models_and_other_grids_calibrate(tiny, images):
    model = tiny(img_size=(32, 24), class_token=False, global_pool="avg").requires_grad_(False)
    method = calibrate(model, [(images(2, 32, 24), torch.tensor([1, 2]))], blocks=(1,))
    assert method.layers[1].merge.shape[1] == 48
    ttf.apply(model, method=method, blocks=method.blocks)
    assert model(images(2, 32, 24)).shape == (2, 10)


def test_calibration_refuses_what_it_cannot_do(tiny, images):
    model = tiny(dynamic_img_size=True)
    with pytest.raises(ValueError, match="at least one batch"):
        calibrate(model, [])
    with pytest.raises(ValueError, match="one size"):
        calibrate(model, [(images(), None), (images(2, 24, 32), None)])
    with pytest.raises(ValueError, match="out of range"):
        calibrate(model, [(images(), None)], blocks=(12,))
    method = calibrate(model, [(images(), None)], blocks=(1, 2))
    ttf.apply(model, method=method, blocks=(1, 3))
    with pytest.raises(ValueError, match=r"block 3 is not calibrated: pass blocks=\(1, 2\)"):
        model(images())
    with pytest.raises(ValueError, match="calibrated on 65 tokens"):
        model(images(2, 24, 32))
