"""Tokens that are reduced at the entrance of a block, with the pooled attention map (MCTF's own place)."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import ResPostBlock
from torch import Tensor
from torch.nn import functional as F

import ttf
from ttf.methods.mctf import MCTF
from ttf.ops.reduction import AssignmentReduction, DenseReduction, SelectionReduction

ENTRANCE = MCTF(place="entrance")


def _by_hand(block: Any, x: Tensor, sizes: Tensor | None, keep: int, prefix: int) -> tuple[Tensor, Tensor]:
    """One block: map of all tokens, W X, pooled map times the values of the new tokens."""
    heads, norm = block.attn.num_heads, block.norm1
    q, k, _ = block.attn.qkv(norm(x)).unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    q, k = block.attn.q_norm(q), block.attn.k_norm(k)
    logits = q @ k.transpose(-2, -1) * block.attn.scale
    attention = (logits if sizes is None else logits + sizes.log()[:, None, None]).softmax(-1)
    view = ttf.methods.LayerView(x, prefix, sizes=sizes, scores=attention.sum(2).mean(1))
    reduction = ENTRANCE.reduce(view, keep)
    weights, source = reduction.matrix().unsqueeze(1), (reduction.matrix() > 0).float().unsqueeze(1)
    y = reduction.down(x)
    v = block.attn.qkv(norm(y)).unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)[2]
    out = (weights @ attention @ source.transpose(-2, -1)) @ v
    y = y + block.attn.proj(out.transpose(1, 2).flatten(2))
    return y + block.mlp(block.norm2(y)), reduction.sizes


@pytest.mark.parametrize("options", [{}, {"reg_tokens": 4}, {"qk_norm": True, "qkv_bias": False}])
def test_a_model_is_its_blocks_by_hand(options: dict[str, Any], tiny: Any, images: Any) -> None:
    model, x, blocks = tiny(depth=3, **options), images(), (1, 2)
    prefix = model.num_prefix_tokens
    with torch.inference_mode():
        tokens, sizes = model.blocks[0](model._pos_embed(model.patch_embed(x))), None
        for number in blocks:
            keep = prefix + int(0.7 * (tokens.shape[1] - prefix))
            tokens, sizes = _by_hand(model.blocks[number], tokens, sizes, keep, prefix)
        with ttf.applied(model, ENTRANCE, ratio=0.7, blocks=blocks):
            out, layers = model.forward_features(x), ttf.trace(model, x)
        torch.testing.assert_close(out, model.norm(tokens), atol=1e-4, rtol=1e-4)
    assert [layer.block for layer in layers] == list(blocks)
    torch.testing.assert_close(layers[-1].sizes, sizes, atol=1e-5, rtol=1e-5)


def test_norms_behind_the_attention(stir: Any, images: Any) -> None:
    kind = {"img_size": 32, "patch_size": 4, "embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": 10}
    model = stir(timm.models.VisionTransformer(block_fn=ResPostBlock, **kind))
    x = images()
    before = model(x)
    with ttf.applied(model, ENTRANCE, ratio=0.7, blocks=(1,)):
        assert bool(torch.isfinite(model(x)).all()) and not torch.equal(model(x), before)
    with ttf.applied(model, MCTF(), ratio=0.7, blocks=(1,)):
        assert not torch.equal(model(x), before)
    assert torch.equal(model(x), before)


def test_hooks_fire_and_a_linear_layer_of_another_kind_is_called(tiny: Any, images: Any) -> None:
    model, x, seen = tiny(depth=2), images(), list[tuple[str, int]]()
    with ttf.applied(model, ENTRANCE, ratio=0.5, blocks=(1,)):
        expected = model(x)
        attn = model.blocks[1].attn
        attn.register_forward_hook(lambda module, args, out: seen.append(("attn", out.x.shape[1])))
        attn.qkv.register_forward_hook(lambda module, args, out: seen.append(("qkv", out.shape[1])))
        torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=1e-5)
    assert seen == [("qkv", 65), ("qkv", 33), ("attn", 33)]


def test_models_that_cannot_pool_are_refused() -> None:
    model = timm.create_model("eva02_tiny_patch14_224", img_size=56, depth=2, num_classes=10)
    with pytest.raises(ValueError, match="place=between"):
        ttf.apply(model, ENTRANCE, blocks=(1,))


def test_recovered_and_trained(tiny: Any, images: Any) -> None:
    model, x = tiny(depth=3).train(), images()
    ttf.apply(model, ENTRANCE, ratio=0.5, blocks=(1, 2), recover=True)
    model(x).square().sum().backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in model.blocks.parameters())
    assert model.forward_features(x).shape == (2, 65, 48)


@pytest.mark.slow
def test_it_compiles_without_a_break(tiny: Any, images: Any) -> None:
    with ttf.applied(tiny(depth=2), ENTRANCE, ratio=0.5, blocks=(1,)) as model, torch.inference_mode():
        expected = model(images())
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(images()), expected, atol=1e-4, rtol=1e-4)


def test_pooled_maps_are_those_of_the_matrices() -> None:
    attention = torch.randn(2, 3, 9, 9).softmax(-1)
    index = torch.tensor([[0, 1, 1, 2, 3, 1, 2, 3, 3]]).expand(2, 9)
    weight = torch.rand(2, 9)
    merged = AssignmentReduction(sizes=torch.ones(2, 4), index=index, weight=weight)
    source = (merged.matrix() > 0).float().unsqueeze(1)
    expected = merged.matrix().unsqueeze(1) @ attention @ source.transpose(-2, -1)
    torch.testing.assert_close(merged.pooled(attention), expected)
    shares, mass = torch.randn(2, 8, 4).softmax(-1), torch.rand(2, 8) + 0.5
    soft = DenseReduction(sizes=torch.ones(2, 5), assignment=shares, mass=mass, prefix=1)
    split = F.pad(shares, (1, 0, 1, 0))
    split[:, 0, 0] = 1.0
    pooled = soft.pooled(attention)
    torch.testing.assert_close(pooled, soft.matrix().unsqueeze(1) @ attention @ split.unsqueeze(1))
    torch.testing.assert_close(pooled.sum(-1), torch.ones(2, 3, 5))
    with pytest.raises(ValueError, match="cannot be pooled"):
        SelectionReduction(sizes=torch.ones(2, 3), kept=index[:, :3], columns=9).pooled(attention)
