"""Prune and Merge: ranks, matrices and blocks against the official ones."""

from __future__ import annotations

from functools import partial
from inspect import signature
from typing import Any

import pytest
import torch
from timm.layers import Attention
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from tests.golden import margins
from tests.golden.blocks import TOKEN, WEIGHT, Case, attend, feed_forward
from ttf.methods import LayerView
from ttf.methods.prune_and_merge import PruneAndMerge, layer_ranks, matrices, merge_size_bias
from ttf.ops.attention import Wanted


def _check_ranks(case: Case) -> None:
    maps = [(case[f"calib{t}_attn"], case[f"calib{t}_grad"]) for t in range(case.settings["calib_batches"])]
    torch.testing.assert_close(layer_ranks(maps), case["layer0/seq_ranks"], **WEIGHT)


def _clear(case: Case) -> None:
    """Which tokens are pruned and which are centres, of all layers together."""
    settings, rows = case.settings, []
    for layer in settings["merge_list"]:
        ranks = case[f"layer{layer}/seq_ranks"].double()
        rows.append(ranks / ranks.norm() * (1 - 0.025 * layer))
    pooled, layers = torch.cat(rows).log().unsqueeze(0), len(rows)
    for count in (settings["num_keep"] * layers, pooled.shape[1] - settings["num_prune"] * layers):
        margins.assert_clear(margins.cut(pooled, count), margins.SCORE)


def _method(case: Case) -> PruneAndMerge:
    settings = case.settings
    ranks = {layer: case[f"layer{layer}/seq_ranks"] for layer in settings["merge_list"]}
    rates = {"keep_rate": settings["keep_rate"], "prune_rate": settings["prune_rate"]}
    return PruneAndMerge(matrices(ranks, settings["grid_side"], **rates))


def _block(case: Case, layer: int) -> Any:
    """The official block, whose heads are wider than its channels allow for."""
    if "attn_head_dim" not in signature(Attention).parameters:
        pytest.skip("timm 1.0.22 has no heads of another width, which the official block has")
    settings, weights = case.settings, case.group(f"layer{layer}/weights")
    hidden, dim = weights["mlp.fc1.weight"].shape
    norm: Any = partial(nn.LayerNorm, eps=1e-5)
    block = Block(dim, settings["heads"], hidden / dim, qkv_bias=True, norm_layer=norm)
    block.attn = Attention(dim, settings["heads"], attn_head_dim=settings["head_dim"], qkv_bias=True)
    block.load_state_dict(weights)
    return block.eval()


def _through_host(block: Any, x: Tensor) -> Tensor:
    return feed_forward(block, attend(block, x, None, Wanted(attention=True), 1).x)


@torch.inference_mode()
def _check_layer(case: Case, method: PruneAndMerge, layer: int) -> None:
    stored = {name: case.get(f"layer{layer}/{name}") for name in ("merge_matrix", "recover_matrix", "token_mask")}
    made, x = method.layers[layer], case[f"layer{layer}/x"]
    assert made.merge.shape[0] == case.settings["channels"][layer]
    torch.testing.assert_close(made.merge, stored["merge_matrix"], **WEIGHT)
    torch.testing.assert_close(made.recover, stored["recover_matrix"], **WEIGHT)
    assert torch.equal(made.mask, stored["token_mask"])
    torch.testing.assert_close(merge_size_bias(made.merge), case[f"layer{layer}/size_bias"], **WEIGHT)
    reduction = method.reduce(LayerView(x, 1, block=layer), x.shape[1] - 1)
    short = reduction.down(x)
    torch.testing.assert_close(reduction.close(short, x), case[f"layer{layer}/linear_out"], **TOKEN)
    expected = case.get(f"layer{layer}/block_out")
    if expected is not None:
        block = _block(case, layer)
        torch.testing.assert_close(reduction.close(block(short), x), expected, **TOKEN)
        torch.testing.assert_close(reduction.close(_through_host(block, short), x), expected, **TOKEN)


def case(case: Case) -> None:
    settings = case.settings
    patches = settings["grid_side"] ** 2
    assert settings["num_prune"] == int(patches * settings["prune_rate"])
    assert settings["num_keep"] == int(patches * settings["keep_rate"])
    _check_ranks(case)
    _clear(case)
    method = _method(case)
    assert method.blocks == tuple(settings["merge_list"])
    for layer in settings["merge_list"]:
        _check_layer(case, method, layer)
    others = set(range(settings["layers"])) - set(settings["merge_list"])
    assert all(settings["channels"][layer] == patches + 1 for layer in others)
    assert any(f"layer{layer}/block_out" in case for layer in settings["merge_list"])


CHECKS = {"case": case}
