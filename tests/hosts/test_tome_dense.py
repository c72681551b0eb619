"""ToMe's port for dense tasks: tokens are merged inside a branch alone, on Segmenter and on timm's blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import ResPostBlock
from torch import Tensor, nn

import ttf
from ttf.methods import LayerView
from ttf.methods.tome_dense import ToMeDense
from ttf.models.segmenter import Segmenter
from ttf.ops.bipartite import cosines

SMALL: dict[str, Any] = {"img_size": 64, "num_classes": 5, "width": 64, "depth": 4, "heads": 2, "decoder_depth": 1}
EVERY = (0, 1, 2, 3)
TOKENS, KEEP = 17, 12  # a class token and 16 patches, of which 11 are left at keep ratio 0.7

Images = Callable[..., Tensor]
Maker = Callable[[], Any]


@pytest.fixture(params=["segmenter", "timm", "norm behind"])
def model(
    request: pytest.FixtureRequest, tiny: Callable[..., nn.Module], stir: Callable[[nn.Module], nn.Module]
) -> Any:
    if request.param == "segmenter":
        return stir(Segmenter(**SMALL))
    kinds = {"timm": {"init_values": 0.5}, "norm behind": {"block_fn": ResPostBlock, "init_values": 0.5}}
    return tiny(img_size=64, patch_size=16, depth=4, **kinds[request.param])


def _blocks(model: Any) -> Any:
    return model.encoder.blocks if isinstance(model, Segmenter) else model.blocks


def _tokens(model: Any, images: Tensor) -> list[Tensor]:
    """What goes into the first attention layer, and into the first feed-forward."""
    seen: list[Tensor] = []
    first = _blocks(model)[0]
    handles = [part.register_forward_pre_hook(lambda _, args: seen.append(args[0])) for part in (first.attn, first.mlp)]
    model(images)
    for handle in handles:
        handle.remove()
    return seen


def test_ratio_one_changes_no_bit_and_no_key(model: Any, images: Images):
    x = images(2, 64)
    before, keys = model(x), list(model.state_dict())
    ttf.apply(model, "tome_dense", ratio=1.0, blocks=EVERY)
    assert torch.equal(model(x), before)
    assert list(model.state_dict()) == keys


def test_both_branches_are_short_and_every_token_comes_back(model: Any, images: Images):
    x = images(2, 64)
    before, dense, cost = model(x), model.forward_features(x), ttf.measure.gmacs(model, (3, 64, 64))
    ttf.apply(model, "tome_dense", ratio=0.7, blocks=EVERY)
    assert [tokens.shape[1] for tokens in _tokens(model, x)] == [KEEP, KEEP]
    assert model.forward_features(x).shape == dense.shape
    assert not torch.allclose(model(x), before, atol=1e-3)
    assert ttf.measure.gmacs(model, (3, 64, 64)) < 0.85 * cost
    assert torch.equal(ttf.remove(model)(x), before)


def test_a_block_is_what_the_definition_says(model: Any, images: Images):
    """The first block by hand: means of groups by an explicit W, and every token takes its group's result."""
    x, blocks, after = images(2, 64), _blocks(model), []
    handle = blocks[0].register_forward_pre_hook(lambda _, args: after.append(args[0]))
    model(x)
    handle.remove()
    tokens, block = after[0], blocks[0]
    behind = isinstance(block, ResPostBlock)
    for norm, part, scale in (
        (block.norm1, block.attn, block.ls1 if not behind else None),
        (block.norm2, block.mlp, block.ls2 if not behind else None),
    ):
        normed = tokens if behind else norm(tokens)
        weights = ToMeDense().reduce(LayerView(normed, 1), KEEP).matrix()
        short = part(weights @ normed)
        short = norm(short) if behind else scale(short)
        tokens = tokens + (weights > 0).float().transpose(1, 2) @ short
    ttf.apply(model, "tome_dense", ratio=0.7, blocks=(0,))
    following: list[Tensor] = []
    handle = _blocks(model)[1].register_forward_pre_hook(
        lambda _, args: following.append(getattr(args[0], "x", args[0]))
    )
    model(x)
    handle.remove()
    torch.testing.assert_close(following[0], tokens, atol=1e-4, rtol=1e-4)


def test_only_the_given_blocks_merge(model: Any, images: Images):
    x = images(1, 64)
    ttf.apply(model, "tome_dense", ratio=0.7, blocks=(2,))
    assert [tokens.shape[1] for tokens in _tokens(model, x)] == [TOKENS, TOKENS]
    some = ttf.measure.gmacs(model, (3, 64, 64))
    ttf.apply(model, "tome_dense", ratio=0.7, blocks=EVERY)
    assert ttf.measure.gmacs(model, (3, 64, 64)) < some


def test_the_most_similar_tokens_merge_and_the_class_token_never():
    x = torch.randn(2, TOKENS, 8)
    x[:, 6] = 1.001 * x[:, 3]  # an even and an odd position alike
    reduction = ToMeDense().reduce(LayerView(x, 1), TOKENS - 1)
    assert torch.equal(reduction.index[:, 6], reduction.index[:, 3])
    assert reduction.matrix()[:, 0].tolist() == [[1.0] + [0.0] * (TOKENS - 1)] * 2
    torch.testing.assert_close(reduction.down(x), reduction.matrix() @ x)
    back = reduction.up(reduction.down(x))
    torch.testing.assert_close(back[:, 6], (x[:, 6] + x[:, 3]) / 2)
    assert float(cosines(back, x).diagonal(dim1=1, dim2=2).min()) > 0.99


def test_no_fewer_tokens_is_the_identity():
    x = torch.randn(2, TOKENS, 8)
    reduction = ToMeDense().reduce(LayerView(x, 1), TOKENS)
    assert torch.equal(reduction.up(reduction.down(x)), x)


@pytest.mark.parametrize("place", ["backbone", "masks"])
def test_masks_of_a_segmenter_are_dense_at_either_place(
    place: str, stir: Callable[[nn.Module], nn.Module], images: Images
):
    model = stir(Segmenter(**SMALL))
    ttf.apply(model, "tome_dense", ratio=0.5, blocks=EVERY, recover_at=place)
    assert model.forward_masks(images(2, 64, 48)).shape == (2, 5, 4, 3)


def test_gradients_reach_every_parameter(model: Any, images: Images):
    ttf.apply(model, "tome_dense", ratio=0.7, blocks=EVERY).train()(images(2, 64)).square().sum().backward()
    assert all(p.grad is not None for p in _blocks(model).parameters())


def test_it_compiles_as_one_graph(stir: Callable[[nn.Module], nn.Module], images: Images):
    torch.compiler.reset()  # of what other tests compiled: there is a limit
    model, x = stir(Segmenter(**{**SMALL, "depth": 1})), images(2, 64)
    ttf.apply(model, "tome_dense", ratio=0.7, blocks=(0,))
    graph: Any = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(graph(x), model(x), atol=1e-4, rtol=1e-4)
