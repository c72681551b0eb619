"""timm's Vision Transformers: every variant against its uncompressed self and against a run by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import ResPostBlock, VisionTransformer
from torch import Tensor, nn

import ttf
from ttf.core.tokens import Tokens
from ttf.methods import LayerView

VARIANTS: dict[str, dict[str, Any]] = {
    "class token": {},
    "distilled": {},
    "registers": {"reg_tokens": 4},
    "no class token": {"class_token": False, "global_pool": "avg"},
    "average, norm after": {"global_pool": "avg", "fc_norm": True},
    "average, norm before": {"global_pool": "avg", "fc_norm": False},
    "average with prefix": {"global_pool": "avg", "pool_include_prefix": True, "reg_tokens": 2},
    "map": {"global_pool": "map"},
    "map, no class token": {"global_pool": "map", "class_token": False},
    "query-key norm": {"qk_norm": True},
    "layer scale": {"init_values": 0.5},
    "post norm": {"block_fn": ResPostBlock, "init_values": 0.3},
    "pre norm": {"pre_norm": True, "no_embed_class": True},
    "scale norms": {"scale_attn_norm": True, "scale_mlp_norm": True},
    "dynamic size": {"dynamic_img_size": True},
}
SOFT = {"tau": 10.0}  # 150 would multiply the rounding by which two ways of computing differ
CLOSE = {torch.bfloat16: 0.05, torch.float16: 0.02}  # uncompressed, such models differ by up to 0.025 and 0.002
AVERAGED = [name for name in VARIANTS if name.startswith("average") or name == "no class token"]
MAPPED = [name for name in VARIANTS if name.startswith("map")]

Tiny = Callable[..., VisionTransformer]
Images = Callable[..., Tensor]
Variant = Callable[[str], Any]


@pytest.fixture
def variant(tiny: Tiny, stir: Callable[[nn.Module], nn.Module]) -> Variant:
    def make(name: str) -> nn.Module:
        if name != "distilled":
            return tiny(**VARIANTS[name])
        size = {"img_size": 32, "patch_size": 4, "embed_dim": 48, "num_heads": 3, "num_classes": 10}
        return stir(timm.create_model("deit_tiny_distilled_patch16_224", **size))

    return make


def _embedded(model: Any, x: Tensor) -> Any:
    return model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(x))))


def _tokens(model: Any, x: Tensor) -> Tensor:
    """The short sequence behind the blocks."""
    out = model.blocks(_embedded(model, x))
    assert isinstance(out, Tokens)
    return out.x


def _attention_by_hand(attn: Any, x: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Output (Eq. 7), column sums of the map (Eq. 2) and mean keys, with an explicit softmax."""
    q, k, v = (part.unflatten(2, (attn.num_heads, -1)).transpose(1, 2) for part in attn.qkv(x).chunk(3, dim=-1))
    q, k = attn.q_norm(q), attn.k_norm(k)
    weights = sizes[:, None, None] * torch.exp(q @ k.transpose(2, 3) * q.shape[-1] ** -0.5)
    attention = weights / weights.sum(-1, keepdim=True)
    out = attn.norm((attention @ v).transpose(1, 2).flatten(2))
    return attn.proj(out), attention.mean(1).sum(1), k.mean(1)


def _halves(block: Any) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """What comes before and after a block's attention, and its feed-forward branch."""
    if isinstance(block, ResPostBlock):
        return (lambda x: x), block.norm1, (lambda x: block.norm2(block.mlp(x)))
    return block.norm1, block.ls1, (lambda x: block.ls2(block.mlp(block.norm2(x))))


def _by_hand(model: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens and sizes after the blocks of a compressed model, block by block."""
    plan, x = ttf.plan(model), _embedded(model, images)
    x = x.x if isinstance(x, Tokens) else x
    sizes = torch.ones(x.shape[:2])
    for number, block in enumerate(model.blocks):
        enter, leave, feed_forward = _halves(block)
        out, scores, keys = _attention_by_hand(block.attn, enter(x), sizes)
        x = x + leave(out)
        keep = plan.prefix + plan.schedule.kept(number, x.shape[1] - plan.prefix)
        if keep < x.shape[1]:
            reduction = plan.method.reduce(LayerView(x, plan.prefix, sizes, scores, keys, block.norm2(x)), keep)
            x, sizes = reduction.matrix() @ x, reduction.sizes
        x = x + feed_forward(x)
    return x, sizes


@pytest.mark.parametrize("name", VARIANTS)
def test_ratio_one_changes_no_bit_and_no_key(name: str, variant: Variant, images: Images) -> None:
    model, x = variant(name), images()
    before, keys, features = model(x), list(model.state_dict()), model.forward_features(x)
    ttf.apply(model, ratio=1.0)
    assert torch.equal(model(x), before)
    assert torch.equal(model.forward_features(x), features)
    assert list(model.state_dict()) == keys


@pytest.mark.parametrize("name", VARIANTS)
def test_remove_restores_every_bit(name: str, variant: Variant, images: Images) -> None:
    model, x = variant(name), images()
    before, kind, container = model(x), type(model), model.blocks
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    ttf.apply(model)
    assert not torch.equal(model(x), before)
    assert list(model.state_dict()) == list(weights)
    ttf.remove(model)
    assert torch.equal(model(x), before)
    assert type(model) is kind
    assert model.blocks is container
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", VARIANTS)
def test_compressed_tokens_equal_the_run_by_hand(name: str, variant: Variant, images: Images) -> None:
    model, x = ttf.apply(variant(name), **SOFT), images()
    tokens, _ = _by_hand(model, x)
    assert tokens.shape[1] == model.num_prefix_tokens + 21  # 64 -> 44 -> 30 -> 21
    torch.testing.assert_close(_tokens(model, x), tokens, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"preset": "paper"},
        {"feature": "xk"},
        {"feature": "norm"},
        {"feature": "keys"},
        {"gate": "mask", "kappa": 0.7},
        {"score_rows": "class"},
        {"score_rows": "patch", "isolate": False},
        {"selection": "informative", "accumulate": False},
    ],
)
def test_options_reach_the_layers(options: dict[str, Any], tiny: Tiny, images: Images) -> None:
    model, x = tiny(), images()
    default = ttf.apply(model, **SOFT)(x)
    ttf.apply(model, **SOFT, **options)
    if "score_rows" in options:  # the run by hand sums all rows
        assert not torch.allclose(model(x), default)
        return
    torch.testing.assert_close(_tokens(model, x), _by_hand(model, x)[0], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(model(x), default)


def test_scaling_can_be_switched_off(tiny: Tiny, images: Images) -> None:
    """Without log s the blocks after the last reduction are the model's own on the short sequence."""
    model = ttf.apply(tiny(), blocks=(10,), scaling=False)
    seen: list[Tensor] = []
    model.blocks[10].mlp.register_forward_hook(lambda _, __, out: seen.append(out))
    captured: list[tuple[Tensor, Tensor]] = []
    handle = model.blocks[11].register_forward_hook(lambda _, inputs, out: captured.append((inputs[0].x, out.x)))
    model(images())
    handle.remove()
    assert seen[0].shape[1] == 45
    ((before, after),) = captured
    assert torch.equal(ttf.remove(model).blocks[11](before), after)


@pytest.mark.parametrize("options", [{}, {"gate": "mask", "kappa": 0.7}], ids=str)
@pytest.mark.parametrize("name", AVERAGED)
def test_average_pool_weighs_tokens_by_size(
    name: str, options: dict[str, Any], variant: Variant, images: Images
) -> None:
    model, x = ttf.apply(variant(name), **SOFT, **options), images()
    first = 0 if model.pool_include_prefix else model.num_prefix_tokens
    tokens, sizes = (values[:, first:] for values in _by_hand(model, x))
    weights = sizes / sizes.sum(1, keepdim=True)
    pooled = (model.norm(tokens) * weights.unsqueeze(-1)).sum(1)
    torch.testing.assert_close(model(x), model.head(model.fc_norm(pooled)), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model.forward_head(model.forward_features(x)), model(x))


@pytest.mark.parametrize("name", MAPPED)
def test_attention_pool_sees_sizes(name: str, variant: Variant, images: Images) -> None:
    model, x = ttf.apply(variant(name), **SOFT), images()
    tokens, sizes = (values[:, model.num_prefix_tokens :] for values in _by_hand(model, x))
    pooled = model.attn_pool(model.norm(tokens), attn_mask=sizes.log()[:, None, None])
    torch.testing.assert_close(model(x), model.head(pooled), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("recover", [True, "nearest", "transpose"])
@pytest.mark.parametrize("name", ["class token", *AVERAGED, *MAPPED])
def test_recovered_models_see_dense_tokens(name: str, recover: bool | str, variant: Variant, images: Images) -> None:
    model, x = variant(name), images()
    tokens = model.forward_features(x).shape
    ttf.apply(model, recover=recover)
    features = model.forward_features(x)
    assert features.shape == tokens
    assert torch.equal(model.norm(model.blocks(_embedded(model, x))), features)
    torch.testing.assert_close(model(x), ttf.remove(model).forward_head(features))


@pytest.mark.parametrize(("height", "width"), [(24, 40), (40, 24), (32, 32)])
def test_images_of_any_shape(height: int, width: int, variant: Variant, images: Images) -> None:
    model, x = ttf.apply(variant("dynamic size"), **SOFT), images(2, height, width)
    torch.testing.assert_close(_tokens(model, x), _by_hand(model, x)[0], atol=1e-4, rtol=1e-4)
    assert ttf.trace(model, x)[0].grid == (height // 4, width // 4)


@pytest.mark.parametrize("name", VARIANTS)
def test_images_do_not_see_each_other(name: str, variant: Variant, images: Images) -> None:
    model, x = ttf.apply(variant(name), **SOFT), images(3)
    torch.testing.assert_close(torch.cat([model(image[None]) for image in x]), model(x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("recover", [False, True])
@pytest.mark.parametrize("name", ["class token", "no class token", "map", "distilled"])
def test_empty_batch(name: str, recover: bool, variant: Variant, images: Images) -> None:
    model = ttf.apply(variant(name), recover=recover)
    assert model(images(0)).shape == (0, 10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["class token", "no class token", "map"])
def test_autocast_is_close_to_float32(name: str, dtype: torch.dtype, variant: Variant, images: Images) -> None:
    model, x = ttf.apply(variant(name)), images(16)
    with torch.autocast("cpu", dtype=dtype):
        out, layers = model(x), ttf.trace(model, x)
    assert _difference(out, model(x)) < CLOSE[dtype]
    for layer in layers:
        assert layer.sizes.dtype == layer.W.dtype == layer.total.dtype == torch.float32
        torch.testing.assert_close(layer.sizes.sum(1), torch.full((16,), 64.0 + model.num_prefix_tokens))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["class token", "no class token", "map", "layer scale"])
def test_models_in_half_precision(name: str, dtype: torch.dtype, variant: Variant, images: Images) -> None:
    model, x = ttf.apply(variant(name)), images(16)
    expected = model(x)
    out = model.to(dtype)(x.to(dtype))
    assert out.dtype == dtype
    assert _difference(out, expected) < CLOSE[dtype]


def _difference(out: Tensor, expected: Tensor) -> float:
    """Root mean square difference relative to the spread of the logits; NaN fails every bound."""
    return ((out.float() - expected).square().mean().sqrt() / expected.std()).item()


def _gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    model(x).square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", VARIANTS)
def test_training_reaches_every_parameter(name: str, variant: Variant, images: Images) -> None:
    model = variant(name).train()
    expected = set(_gradients(model, images()))
    ttf.apply(model)
    gradients = _gradients(model, images())
    assert set(gradients) >= expected
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients.values())
    assert all(gradients[key].count_nonzero() > 0 for key in expected if key != "attn_pool.kv.bias")


def test_gradient_checkpointing_changes_nothing_but_memory(tiny: Tiny, images: Images) -> None:
    model, x = ttf.apply(tiny()).train(), images()
    calls: list[int] = []
    model.blocks[-1].mlp.register_forward_pre_hook(lambda _, inputs: calls.append(inputs[0].shape[1]))
    out, gradients = model(x), _gradients(model, x)
    assert calls == [22, 22]  # tokens seen by the last block
    model.set_grad_checkpointing(True)
    calls.clear()
    torch.testing.assert_close(model(x), out)
    assert calls == [22]
    checkpointed = _gradients(model, x)
    assert calls == [22, 22, 22]  # forward, and again in the backward pass
    assert checkpointed.keys() == gradients.keys()
    for key, gradient in checkpointed.items():
        torch.testing.assert_close(gradient, gradients[key])


def test_dropout_acts_in_training_alone(tiny: Tiny, images: Images) -> None:
    rates = ("drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate")
    model, x = ttf.apply(tiny(**dict.fromkeys(rates, 0.2))), images()
    expected = model(x)
    first, second = model.train()(x), model(x)
    assert bool(torch.isfinite(first).all())
    assert not torch.equal(first, second)
    assert torch.equal(model.eval()(x), expected)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"indices": 3, "norm": True},
        {"indices": (2, 5, 8), "stop_early": True},
        {"output_fmt": "NLC", "return_prefix_tokens": True, "intermediates_only": True},
    ],
)
def test_intermediates_at_ratio_one_are_the_models_own(options: dict[str, Any], tiny: Tiny, images: Images) -> None:
    model, x = tiny(reg_tokens=2), images()
    before = model.forward_intermediates(x, **options)
    after = ttf.apply(model, ratio=1.0).forward_intermediates(x, **options)
    torch.testing.assert_close(after, before, atol=0, rtol=0)


def test_intermediates_are_full_grids_of_recovered_tokens(variant: Variant, images: Images) -> None:
    model, x = variant("dynamic size"), images(2, 24, 40)
    _, plain = model.forward_intermediates(x, norm=True)
    final, taps = ttf.apply(model, recover=True).forward_intermediates(x, norm=True)
    assert [tap.shape for tap in taps] == [(2, 48, 6, 10)] * 12
    assert all(torch.equal(tap, own) for tap, own in zip(taps[:3], plain, strict=False))
    assert not torch.allclose(taps[3], plain[3])
    assert torch.equal(final, model.forward_features(x))
    assert torch.equal(taps[-1].flatten(2).transpose(1, 2), final[:, 1:])
