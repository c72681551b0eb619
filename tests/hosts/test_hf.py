"""Vision encoders of transformers, alone and inside larger models, against themselves and a run by hand."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ttf
from tests.methods_under_test import CASES, MethodCase
from ttf.core.entry import blocks_of
from ttf.methods import LayerView
from ttf.methods.prune_and_merge import PruneAndMerge, matrices
from ttf.ops.attention import size_bias

transformers: Any = pytest.importorskip("transformers", reason="needs transformers: pip install 'ttf[hf]'")

WIDE = {"hidden_size": 48, "num_hidden_layers": 6, "num_attention_heads": 3, "image_size": 32, "patch_size": 4}
VISION = {**WIDE, "intermediate_size": 96}
TEXT = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 3, "vocab_size": 50}
WORDS = {**TEXT, "bos_token_id": 48, "eos_token_id": 49, "pad_token_id": 1}
BOTH = {"vision_config": VISION, "text_config": WORDS}
DINO = {**WIDE, "mlp_ratio": 2, "layerscale_value": 0.7}
ENCODERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "clip": ("CLIPVisionModel", "CLIPVisionConfig", VISION),
    "siglip": ("SiglipVisionModel", "SiglipVisionConfig", VISION),
    "vit": ("ViTModel", "ViTConfig", VISION),
    "deit": ("DeiTModel", "DeiTConfig", VISION),
    "dinov2": ("Dinov2Model", "Dinov2Config", DINO),
    "dinov2, swiglu": ("Dinov2Model", "Dinov2Config", {**DINO, "use_swiglu_ffn": True}),
    "dinov2, registers": ("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", DINO),
    "dinov3": ("DINOv3ViTModel", "DINOv3ViTConfig", {**VISION, "num_register_tokens": 4, "layerscale_value": 0.7}),
    "dinov3, gated": ("DINOv3ViTModel", "DINOv3ViTConfig", {**VISION, "use_gated_mlp": True}),
}
CLASSIFIERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "vit": ("ViTForImageClassification", "ViTConfig", VISION),
    "deit": ("DeiTForImageClassification", "DeiTConfig", VISION),
    "deit, teacher": ("DeiTForImageClassificationWithTeacher", "DeiTConfig", VISION),
    "dinov2": ("Dinov2ForImageClassification", "Dinov2Config", DINO),
    "dinov2, registers": ("Dinov2WithRegistersForImageClassification", "Dinov2WithRegistersConfig", DINO),
    "clip": ("CLIPForImageClassification", "CLIPConfig", BOTH),
    "siglip": ("SiglipForImageClassification", "SiglipConfig", BOTH),
}
MODELS = {
    **{f"{name}, encoder": kind for name, kind in ENCODERS.items()},
    **{f"{name}, classifier": kind for name, kind in CLASSIFIERS.items()},
    "clip, projection": ("CLIPVisionModelWithProjection", "CLIPVisionConfig", VISION),
    "siglip, no head": ("SiglipVisionModel", "SiglipVisionConfig", {**VISION, "vision_use_head": False}),
}
CLIP, DINOV3, SIGLIP = ENCODERS["clip"], ENCODERS["dinov3"], ENCODERS["siglip"]
SOFT = {"tau": 10.0, "ratio": 0.5}  # tau = 150 would multiply the rounding by which two ways of computing differ
CLOSE = {"atol": 1e-4, "rtol": 1e-4}

Images = Callable[..., Tensor]
Build = Callable[..., Any]


@pytest.fixture
def build(stir: Callable[[nn.Module], nn.Module]) -> Build:
    """Maker of small random models of (class, configuration, fields), fields changed by name."""

    def make(kind: tuple[str, str, dict[str, Any]], attention: str = "sdpa", **changes: Any) -> Any:
        name, config, fields = kind
        torch.manual_seed(0)
        settings = getattr(transformers, config)(**{**copy.deepcopy(fields), **changes})
        return stir(getattr(transformers, name)._from_config(settings, attn_implementation=attention))

    return make


def _tensors(out: Any) -> list[Tensor]:
    """All tensors of an output, in order."""
    if isinstance(out, Tensor):
        return [out]
    parts = out.values() if hasattr(out, "values") else out if isinstance(out, tuple | list) else ()
    return [tensor for part in parts for tensor in _tensors(part)]


def _same(a: Any, b: Any) -> bool:
    first, second = _tensors(a), _tensors(b)
    return len(first) == len(second) > 0 and all(torch.equal(p, q) for p, q in zip(first, second, strict=True))


def _encoder(model: nn.Module) -> Any:
    return ttf.hosts.find(model).runs(model)


# by hand


def _linear(layer: nn.Module, *names: str) -> nn.Module:
    (found,) = [m for path, m in layer.named_modules() if path.endswith(names) and isinstance(m, nn.Linear)]
    return found


def _place_rotation(x: Tensor, rotation: tuple[Tensor, Tensor], places: Tensor) -> Tensor:
    """Queries or keys (B, H, N, D), the patches at ``places`` (B, n) rotated."""
    prefix, half = x.shape[2] - places.shape[1], x.shape[3] // 2
    cos, sin = (part[places].unsqueeze(1) for part in rotation)
    patches = x[:, :, prefix:]
    turned = torch.cat((-patches[..., half:], patches[..., :half]), dim=-1)
    return torch.cat((x[:, :, :prefix], patches * cos + turned * sin), dim=2)


def _attention_by_hand(
    layer: nn.Module, x: Tensor, sizes: Tensor, rotation: tuple[Tensor, Tensor] | None, places: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Output (Eq. 7), column sums of the map (Eq. 2) and mean keys, with an explicit softmax."""
    parts = (_linear(layer, *names)(x) for names in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value")))
    q, k, v = (part.unflatten(2, (3, 16)).transpose(1, 2) for part in parts)
    if rotation is not None:
        q, k = (_place_rotation(part, rotation, places) for part in (q, k))
    weights = sizes[:, None, None] * torch.exp(q @ k.transpose(2, 3) / 4)
    attention = weights / weights.sum(-1, keepdim=True)
    out = _linear(layer, "out_proj", "o_proj", "attention.output.dense")((attention @ v).transpose(1, 2).flatten(2))
    return out, attention.mean(1).sum(1), k.mean(1)


def _feed_forward_by_hand(layer: Any, normed: Tensor) -> Tensor:
    if hasattr(layer, "mlp"):
        return layer.mlp(normed)
    return layer.output.dense(layer.intermediate(normed))


def _scale(layer: Any, number: int) -> Any:
    return getattr(layer, f"layer_scale{number}").lambda1 if hasattr(layer, "layer_scale1") else 1.0


def _by_hand(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens and sizes behind the layers of a compressed model, layer by layer."""
    plan, encoder = ttf.plan(model), _encoder(model)
    x = encoder.embeddings(images)
    x = encoder.pre_layrnorm(x) if hasattr(encoder, "pre_layrnorm") else x
    rotation = encoder.rope_embeddings(images) if hasattr(encoder, "rope_embeddings") else None
    sizes, prefix = torch.ones(x.shape[:2]), plan.prefix
    places = torch.arange(x.shape[1] - prefix).expand(len(x), -1)
    for number, layer in enumerate(blocks_of(model, plan.host)):
        norm1, norm2 = (module for module in layer.modules() if isinstance(module, nn.LayerNorm))
        out, scores, keys = _attention_by_hand(layer, norm1(x), sizes, rotation, places)
        x = x + _scale(layer, 1) * out
        keep = prefix + plan.schedule.kept(number, x.shape[1] - prefix)
        if keep < x.shape[1]:
            reduction = plan.method.reduce(LayerView(x, prefix, sizes, scores, keys, norm2(x)), keep)
            x, sizes = reduction.matrix() @ x, reduction.sizes
            places = places.gather(1, reduction.kept[:, prefix:] - prefix)
        x = x + _scale(layer, 2) * _feed_forward_by_hand(layer, norm2(x))
    return x, sizes


def _last_norm(encoder: Any) -> Any:
    names = ("layernorm", "norm") if not hasattr(encoder, "pre_layrnorm") else ()
    names = ("post_layernorm",) if "Siglip" in type(encoder).__name__ else names
    return next((getattr(encoder, name) for name in names if hasattr(encoder, name)), nn.Identity())


@pytest.mark.parametrize("name", ENCODERS)
def test_compressed_tokens_equal_the_run_by_hand(name: str, build: Build, images: Images) -> None:
    model, x = ttf.apply(build(ENCODERS[name]), **SOFT), images()
    tokens, _ = _by_hand(model, x)
    assert tokens.shape[1] == ttf.plan(model).prefix + 8  # 64 -> 32 -> 16 -> 8
    torch.testing.assert_close(model(x).last_hidden_state, _last_norm(_encoder(model))(tokens), **CLOSE)


# ratio 1, remove


@pytest.mark.parametrize("name", MODELS)
def test_ratio_one_changes_no_bit_and_no_key(name: str, build: Build, images: Images) -> None:
    model, x = build(MODELS[name]), images()
    before, keys = model(x, output_hidden_states=True), list(model.state_dict())
    ttf.apply(model, ratio=1.0)
    after = model(x, output_hidden_states=True)
    assert _same(after, before) and type(after) is type(before)
    assert after.hidden_states is not None and len(after.hidden_states) == 7
    assert list(model.state_dict()) == keys


@pytest.mark.parametrize("name", MODELS)
def test_remove_restores_every_bit(name: str, build: Build, images: Images) -> None:
    model, x = build(MODELS[name]), images()
    before, kinds = model(x, output_hidden_states=True), [type(module) for module in model.modules()]
    attributes = [set(vars(module)) for module in model.modules()]
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    ttf.apply(model)
    assert not _same(model(x, output_hidden_states=True), before)
    assert list(model.state_dict()) == list(weights)
    ttf.remove(model)
    assert [type(module) for module in model.modules()] == kinds
    assert [set(vars(module)) - {"forward"} for module in model.modules()] == [a - {"forward"} for a in attributes]
    assert _same(model(x, output_hidden_states=True), before)
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", MODELS)
def test_trace_shows_layers_and_matrices(name: str, build: Build, images: Images) -> None:
    model, x = ttf.apply(build(MODELS[name]), **SOFT), images()
    layers, prefix = ttf.trace(model, x), ttf.plan(model).prefix
    assert [layer.block for layer in layers] == [1, 3, 4]
    assert [layer.W.shape for layer in layers] == [
        (2, prefix + b, prefix + a) for a, b in ((64, 32), (32, 16), (16, 8))
    ]
    for layer in layers:
        torch.testing.assert_close(layer.W.sum(-1), torch.ones(layer.W.shape[:2]))
        torch.testing.assert_close(layer.sizes.sum(1), torch.full((2,), 64.0 + prefix))
        assert (layer.grid, layer.prefix) == ((8, 8), prefix)
    torch.testing.assert_close(layers[2].total, layers[2].W @ layers[1].W @ layers[0].W)


# outputs


@pytest.mark.parametrize("name", MODELS)
def test_hidden_states_are_short_or_dense(name: str, build: Build, images: Images) -> None:
    model, x = build(MODELS[name]), images()
    plain = model(x, output_hidden_states=True)
    ttf.apply(model, ratio=0.5)
    prefix, short = ttf.plan(model).prefix, model(x, output_hidden_states=True)
    assert [state.shape[1] - prefix for state in short.hidden_states] == [64, 64, 32, 32, 16, 8, 8]
    ttf.apply(model, ratio=0.5, recover=True)
    dense = model(x, output_hidden_states=True)
    assert [state.shape for state in dense.hidden_states] == [state.shape for state in plain.hidden_states]
    for out in (short, dense):
        assert all(type(tensor) is Tensor for tensor in _tensors(out)) and type(out) is type(plain)
        assert all(torch.equal(out.hidden_states[i], plain.hidden_states[i]) for i in (0, 1))
        assert [key for key in out if "hidden" not in key] == [key for key in plain if "hidden" not in key]
    for state, recovered, kept in zip(short.hidden_states, dense.hidden_states, _kept_first(model, x), strict=True):
        torch.testing.assert_close(recovered.gather(1, _index(kept, state)), state)


def _index(kept: Tensor, state: Tensor) -> Tensor:
    return kept.unsqueeze(-1).expand(-1, -1, state.shape[-1])


def _kept_first(model: nn.Module, x: Tensor) -> Iterator[Tensor]:
    """Of every hidden state: where its tokens come from in the first sequence."""
    layers = {layer.block: layer for layer in ttf.trace(model, x)}
    kept = torch.arange(64 + ttf.plan(model).prefix).expand(len(x), -1)
    yield kept
    for number in range(6):
        kept = layers[number].origin if number in layers else kept
        yield kept


@pytest.mark.parametrize("recover", [False, True])
@pytest.mark.parametrize("kind", [CLIP, DINOV3, CLASSIFIERS["dinov2"]], ids=lambda kind: kind[0])
def test_tuples_and_the_configuration(kind: Any, recover: bool, build: Build, images: Images) -> None:
    model, x = ttf.apply(build(kind), recover=recover), images()
    expected = model(x, output_hidden_states=True)
    assert _same(model(x, output_hidden_states=True, return_dict=False), expected)
    assert model(x).hidden_states is None
    _encoder(model).config.output_hidden_states = model.config.output_hidden_states = True
    assert _same(model(x).hidden_states, expected.hidden_states)


@pytest.mark.parametrize("recover", [False, True])
@pytest.mark.parametrize("name", ["clip", "siglip", "dinov2", "vit", "dinov3"])
def test_single_hidden_states(name: str, recover: bool, build: Build, images: Images) -> None:
    """Versions that know it give None for the others, older ones all of them."""
    model, x = ttf.apply(build(ENCODERS[name]), recover=recover), images()
    every = model(x, output_hidden_states=True).hidden_states
    for asked, wanted in ((-2, {5}), ([0, 3], {0, 3})):
        states = model(x, output_hidden_states=asked).hidden_states
        assert len(states) == 7
        given = {number for number, state in enumerate(states) if state is not None}
        assert given in (wanted, set(range(7)))
        assert all(torch.equal(states[number], every[number]) for number in given)


def test_attention_maps_are_refused(build: Build, images: Images) -> None:
    model, x = build(CLIP, attention="eager"), images()
    assert len(model(x, output_attentions=True).attentions) == 6
    ttf.apply(model)
    with pytest.raises(ValueError, match="has no attention maps of all tokens: leave output_attentions out"):
        model(x, output_attentions=True)
    model.config.output_attentions = True
    with pytest.raises(ValueError, match="leave output_attentions out"):
        model(x)
    assert model(x, output_attentions=False).attentions is None


MASKED = ["clip", "vit", "dinov2", "dinov3"]


@pytest.mark.parametrize("mask", ["attention_mask", "causal_attention_mask", "head_mask"])
@pytest.mark.parametrize("name", MASKED)
def test_layers_refuse_masks(name: str, mask: str, build: Build) -> None:
    model = ttf.apply(build(ENCODERS[name]))
    layers: Any = blocks_of(model, ttf.plan(model).host)
    names = ttf.plan(model).host.names(layers[0])
    if mask not in names:
        pytest.skip(f"layers of this version have no {mask}")
    tokens = torch.randn(2, 69, 48)
    rest = {"position_embeddings": (torch.randn(64, 16),) * 2} if name == "dinov3" else {}
    rest |= {other: None for other in names if other.endswith("attention_mask") and other != mask}
    assert layers[0](tokens, **rest, **{mask: None}) is not None
    with pytest.raises(ValueError, match="takes no attention mask"):
        layers[0](tokens, **rest, **{mask: torch.zeros(2, 1, 69, 69)})


def test_masks_given_to_the_model_are_refused(build: Build, images: Images) -> None:
    model, x = build(ENCODERS["vit"]), images()
    old = transformers.__version__.startswith("4.")
    mask = {"head_mask": torch.ones(6, 3)} if old else {"attention_mask": (torch.arange(65) < 60).expand(2, -1)}
    if _same(model(x, **mask), model(x)) and not old:
        pytest.skip("this version takes no mask")
    ttf.apply(model)
    with pytest.raises(ValueError, match="takes no attention mask"):
        model(x, **mask)
    assert _same(model(x, **dict.fromkeys(mask)), model(x))


# pools


def _weighted_mean(x: Tensor, sizes: Tensor) -> Tensor:
    return (x * sizes.unsqueeze(-1)).sum(1) / sizes.sum(1, keepdim=True)


POOLED = ["dinov2", "dinov2, registers", "clip", "siglip"]


@pytest.mark.parametrize("options", [{}, {"gate": "mask", "kappa": 0.1}], ids=str)
@pytest.mark.parametrize("name", POOLED)
def test_mean_pools_weigh_tokens_by_size(name: str, options: dict[str, Any], build: Build, images: Images) -> None:
    model, x = ttf.apply(build(CLASSIFIERS[name]), **SOFT, **options), images()
    tokens, sizes = _by_hand(model, x)
    tokens, prefix = _last_norm(_encoder(model))(tokens), ttf.plan(model).prefix
    assert sizes[:, prefix:].std() > 0.5
    pooled = _weighted_mean(tokens[:, prefix:], sizes[:, prefix:])
    pooled = torch.cat((tokens[:, 0], pooled), dim=1) if name.startswith("dinov2") else pooled
    torch.testing.assert_close(model(x).logits, model.classifier(pooled), **CLOSE)


def test_siglips_pooling_head_sees_sizes(build: Build, images: Images) -> None:
    model, x = ttf.apply(build(SIGLIP), **SOFT), images()
    encoder, (tokens, sizes) = _encoder(model), _by_hand(model, x)
    head, tokens = encoder.head, encoder.post_layernorm(tokens)
    q, k, v = (
        (part @ weight.T + bias).unflatten(2, (3, 16)).transpose(1, 2)
        for part, weight, bias in zip(
            (head.probe.expand(2, -1, -1), tokens, tokens), head.attention.in_proj_weight.chunk(3),
            head.attention.in_proj_bias.chunk(3), strict=True,
        )
    )  # fmt: skip
    weights = sizes[:, None, None] * torch.exp(q @ k.transpose(2, 3) / 4)
    pooled = head.attention.out_proj(((weights / weights.sum(-1, keepdim=True)) @ v).transpose(1, 2).flatten(2))
    pooled = pooled + head.mlp(head.layernorm(pooled))
    torch.testing.assert_close(model(x).pooler_output, pooled[:, 0], **CLOSE)


@pytest.mark.parametrize("name", ["siglip, encoder", "clip, classifier", "dinov2, classifier", "siglip, classifier"])
def test_recovered_models_pool_dense_tokens(name: str, build: Build, images: Images) -> None:
    model, x = ttf.apply(build(MODELS[name]), recover=True), images()
    out = model(x, output_hidden_states=True)
    encoder: Any = _encoder(model)
    dense = encoder(x).last_hidden_state
    assert dense.shape[1] == 64 + ttf.plan(model).prefix
    ttf.remove(model)
    torch.testing.assert_close(_last_norm(encoder)(out.hidden_states[-1]), dense)
    if "encoder" in name:
        torch.testing.assert_close(out.pooler_output, encoder.head(dense))
        return
    pooled = dense[:, ttf.hosts.find(model).prefix(model) :].mean(1)
    pooled = torch.cat((dense[:, 0], pooled), dim=1) if "dinov2" in name else pooled
    torch.testing.assert_close(out.logits, model.classifier(pooled))


def test_subclasses_are_what_they_derive_from(build: Build, images: Images) -> None:
    model, x = build(CLASSIFIERS["dinov2"]), images()
    expected = ttf.apply(model)(x).logits
    ttf.remove(model)
    model.__class__ = type("Mine", (type(model),), {})
    model.dinov2.__class__ = type("MyEncoder", (type(model.dinov2),), {})
    assert torch.equal(ttf.apply(model)(x).logits, expected)
    assert ttf.hosts.find(ttf.remove(model)).reads_class_token(model) is False


def test_the_late_schedule_is_for_heads_that_read_the_class_token(build: Build, images: Images) -> None:
    model, x = build(CLASSIFIERS["vit"]), images()
    ttf.apply(model, ratio=0.5, schedule="late")
    assert ttf.trace(model, x)[-1].W.shape[1] == 2
    for other in (CLASSIFIERS["dinov2"], ENCODERS["vit"]):
        with pytest.raises(ValueError, match="read the class token alone"):
            ttf.apply(build(other), schedule="late")


# attention implementations


@pytest.mark.parametrize("name", ENCODERS)
def test_attention_implementations_agree(name: str, build: Build, images: Images) -> None:
    outs = [ttf.apply(build(ENCODERS[name], attention), **SOFT)(images()) for attention in ("sdpa", "eager")]
    for one, other in zip(*map(_tensors, outs), strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_flex_attention_where_it_brings_no_mask(name: str, build: Build, images: Images, monkeypatch: Any) -> None:
    """Its kernel needs a compiler and a GPU, so another one stands in for it."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    expected = ttf.apply(build(ENCODERS[name]), **SOFT)(images()).last_hidden_state
    plain = ALL_ATTENTION_FUNCTIONS["sdpa"]
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "flex_attention", plain)
    out = ttf.apply(build(ENCODERS[name], "flex_attention"), **SOFT)(images()).last_hidden_state
    torch.testing.assert_close(out, expected, **CLOSE)


def test_masks_of_flex_attention_are_refused(build: Build) -> None:
    """Newer versions of ViT, DeiT and DINOv2 bring one even where nothing is masked."""
    model = ttf.apply(build(DINOV3))
    layer: Any = blocks_of(model, ttf.plan(model).host)[0]
    with pytest.raises(ValueError, match="flex_attention masks every layer, .* attn_implementation='sdpa'"):
        layer(torch.randn(2, 69, 48), attention_mask=object(), position_embeddings=(torch.randn(64, 16),) * 2)


@pytest.mark.parametrize("name", ["clip", "vit"])
def test_the_library_attends_until_tokens_have_sizes(name: str, build: Build, images: Images, monkeypatch: Any) -> None:
    """Whatever implementation is set: its kernel need not know a bias, since log s is added by ttf's own attention."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    model, x = build(ENCODERS[name]), images()
    inner, seen = ALL_ATTENTION_FUNCTIONS["sdpa"], list[int]()

    def unbiased(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Any, **kwargs: Any) -> Any:
        assert mask is None
        seen.append(q.shape[2])
        return inner(module, q, k, v, mask, **kwargs)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "sdpa", unbiased)
    ttf.apply(model, ratio=0.5)(x)
    assert seen == [65]  # layer 0; layer 1 reduces
    seen.clear()
    ttf.apply(model, ratio=0.5, scaling=False)(x)
    assert seen == [65, 33, 9]  # without log s the library attends wherever nothing is reduced


# methods


def _matrices(blocks: tuple[int, ...], prefix: int) -> PruneAndMerge:
    ranks = {block: torch.rand(64, generator=torch.Generator().manual_seed(block)) + 0.01 for block in blocks}
    return PruneAndMerge(matrices(ranks, 8, prefix, 0.5, 0.2))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("kind", [CLIP, SIGLIP, DINOV3, CLASSIFIERS["dinov2"]], ids=lambda kind: kind[0])
def test_methods(kind: Any, case: MethodCase, build: Build, images: Images) -> None:
    model, x = build(kind), images()
    method = case.method or _matrices((1, 3), ttf.hosts.find(model).prefix(model))
    if kind is SIGLIP and method.wanted.needs_class_token:
        with pytest.raises(ValueError, match="needs a class token, and this model has none"):
            ttf.apply(model, method)
        return
    if kind is DINOV3 and not method.names_tokens:
        with pytest.raises(ValueError, match=f"rotates queries and keys by place, and {type(method).__name__} makes"):
            ttf.apply(model, method)
        return
    before = model(x)
    out = ttf.apply(model, method, ratio=0.7, blocks=(1, 3))(x)
    assert not _same(out, before) and all(bool(tensor.isfinite().all()) for tensor in _tensors(out))
    layers = ttf.trace(model, x)
    assert layers and all(layer.W.shape[1] < layer.W.shape[2] for layer in layers)
    dense = ttf.apply(model, method, ratio=0.7, blocks=(1, 3), recover=True)(x, output_hidden_states=True)
    assert [state.shape[1] for state in dense.hidden_states] == [64 + ttf.plan(model).prefix] * 7
    assert _same(ttf.remove(model)(x), before)


def test_methods_that_merge_inside_branches_are_refused(build: Build) -> None:
    with pytest.raises(ValueError, match="merges inside the branches of a block"):
        ttf.apply(build(CLIP), "tome_dense")


@pytest.mark.parametrize("name", ["vit, classifier", "dinov2, classifier", "clip, classifier"])
def test_padding_of_adaptive_methods_has_no_say(name: str, build: Build, images: Images) -> None:
    """Reduced once: how many tokens a second layer keeps depends on the longest image of the batch."""
    model, x = ttf.apply(build(MODELS[name]), "ats", ratio=0.5, blocks=[2]), images(8)
    counts = [(layer.sizes > 0).sum(1) for layer in ttf.trace(model, x)]
    assert len(set(counts[0].tolist())) > 1
    torch.testing.assert_close(torch.cat([model(image[None]).logits for image in x]), model(x).logits, **CLOSE)


# what hangs on modules


def _calls(model: nn.Module, x: Tensor) -> dict[str, int]:
    """How often every module of the layers is called."""
    calls: dict[str, int] = {}
    encoder = _encoder(model)

    def count(path: str) -> Any:
        return lambda *_: calls.update({path: calls.get(path, 0) + 1})

    handles = [module.register_forward_hook(count(path)) for path, module in encoder.named_modules() if path]
    model(x)
    for handle in handles:
        handle.remove()
    return calls


@pytest.mark.parametrize("name", MODELS)
def test_hooks_fire_as_often_as_uncompressed(name: str, build: Build, images: Images) -> None:
    model, x = build(MODELS[name]), images()
    before = _calls(model, x)
    assert sum(path.endswith(("attention", "attn")) for path in before) >= 6
    assert _calls(ttf.apply(model), x) == before
    assert _calls(ttf.apply(model, recover=True), x) == before


def _gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    out = model(x)
    (out.logits if hasattr(out, "logits") else out.pooler_output).square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", ["clip, encoder", "siglip, encoder", "vit, classifier", "dinov2, classifier"])
def test_gradient_checkpointing(name: str, build: Build, images: Images) -> None:
    model, x = ttf.apply(build(MODELS[name])).train(), images()
    out, expected = _tensors(model(x)), _gradients(model, x)
    assert any("layers.0" in key or "layer.0" in key for key in expected)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    calls: list[int] = []
    norms = [m for m in blocks_of(model, ttf.plan(model).host)[-1].modules() if isinstance(m, nn.LayerNorm)]
    norms[0].register_forward_pre_hook(lambda _, inputs: calls.append(inputs[0].shape[1]))
    torch.testing.assert_close(_tensors(model(x)), out)
    gradients = _gradients(model, x)
    assert len(calls) == 3  # forward; forward, and again in the backward pass
    assert gradients.keys() == expected.keys()
    for key, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[key])


@pytest.mark.parametrize("name", ["clip, encoder", "siglip, encoder", "vit, classifier", "dinov2, classifier"])
def test_reentrant_checkpointing_is_refused(name: str, build: Build, images: Images) -> None:
    model, x = ttf.apply(build(MODELS[name])).train(), images().requires_grad_()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    with pytest.raises(ValueError, match="gradient checkpointing of a compressed model needs use_reentrant=False"):
        model(x)


def _compiled(model: nn.Module, x: Tensor) -> list[Tensor]:
    return _tensors(torch.compile(model, backend="aot_eager", fullgraph=True)(x))


@pytest.mark.parametrize(
    "name",
    ["clip, encoder", *(pytest.param(f"{n}, encoder", marks=pytest.mark.slow) for n in ("vit", "siglip", "dinov3"))],
)
@torch.no_grad()
def test_compiled_without_graph_breaks(name: str, build: Build, images: Images) -> None:
    model, x = build(MODELS[name], num_hidden_layers=2), images()
    try:
        out = _compiled(ttf.apply(copy.deepcopy(model), **SOFT, blocks=[0]), x)
    except Exception:
        with pytest.raises(Exception, match="."):
            _compiled(model, x)
        pytest.skip("the uncompressed model does not compile to one graph either")
    torch.testing.assert_close(out, _tensors(ttf.apply(model, **SOFT, blocks=[0])(x)), **CLOSE)


@pytest.mark.parametrize("name", ["clip, encoder", "siglip, encoder", "vit, classifier", "dinov3, encoder"])
def test_copies_and_pickles(name: str, build: Build, images: Images) -> None:
    model, x = ttf.apply(build(MODELS[name])), images()
    expected = model(x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert _same(other(x), expected)
        assert not _same(ttf.remove(other)(x), expected)
        assert _same(model(x), expected)


@pytest.mark.parametrize("name", ["clip, encoder", "vit, classifier", "dinov2, classifier"])
def test_saved_while_compressed(name: str, build: Build, images: Images, tmp_path: Path) -> None:
    model, x = build(MODELS[name]), images()
    before = model(x)
    model.save_pretrained(tmp_path / "plain")
    ttf.apply(model).save_pretrained(tmp_path / "compressed")
    files = [sorted(path.name for path in (tmp_path / which).iterdir()) for which in ("plain", "compressed")]
    assert files[0] == files[1]
    for file in files[0]:
        assert (tmp_path / "plain" / file).read_bytes() == (tmp_path / "compressed" / file).read_bytes()
    loaded = getattr(transformers, MODELS[name][0]).from_pretrained(tmp_path / "compressed").eval()
    assert _same(loaded(x), before)
    assert _same(ttf.apply(loaded)(x), model(x))


@pytest.mark.parametrize("name", ["clip, encoder", "vit, classifier", "dinov2, classifier", "dinov3, encoder"])
def test_bfloat16(name: str, build: Build, images: Images) -> None:
    model, x = ttf.apply(build(MODELS[name]), **SOFT), images(8)
    expected = _tensors(model(x))[-1]
    out = _tensors(model.to(torch.bfloat16)(x.bfloat16()))[-1]
    assert out.dtype == torch.bfloat16
    assert ((out.float() - expected).square().mean().sqrt() / expected.std()).item() < 0.05
    assert all(layer.W.dtype == torch.float32 for layer in ttf.trace(model, x.bfloat16()))


# images of other sizes


@pytest.mark.parametrize("name", ["clip", "siglip", "vit", "dinov2", "dinov3"])
def test_images_of_other_sizes_have_their_own_grid(name: str, build: Build, images: Images) -> None:
    model, x = build(ENCODERS[name]), images(2, 64, 16)  # 16 x 4 patches, as many as the 8 x 8 of the configuration
    more = {} if name.startswith("dino") else {"interpolate_pos_encoding": True}
    before = model(x, output_hidden_states=True, **more)
    assert _same(ttf.apply(model, ratio=1.0)(x, output_hidden_states=True, **more), before)
    for recover, tokens in ((False, 16), (True, 64)):  # pooled to half the rows and half the columns
        ttf.apply(model, "uniform_pool", ratio=0.25, blocks=[2], recover=recover) if name != "dinov3" else ttf.apply(
            model, ratio=0.25, blocks=[2], recover=recover
        )
        out = model(x, output_hidden_states=True, **more)
        assert all(type(tensor) is Tensor for tensor in _tensors(out))
        assert out.last_hidden_state.shape[1] == tokens + ttf.plan(model).prefix
        assert _same(out.hidden_states[:3], before.hidden_states[:3])
    if name.startswith("dinov2"):
        matrix = ttf.trace(model, x)[0].W[0, 1:, 1:].unflatten(1, (16, 4))
        assert torch.equal(matrix[1].nonzero(), torch.tensor([[0, 2], [0, 3], [1, 2], [1, 3]]))
        assert ttf.trace(model, x)[0].grid == (16, 4)


def test_dinov3_rotates_by_the_places_of_other_grids(build: Build, images: Images) -> None:
    model, x = ttf.apply(build(DINOV3), **SOFT), images(2, 40, 24)
    encoder = _encoder(model)
    embedded = encoder.embeddings(x)
    assert embedded.grid == (10, 6)
    encoder.embeddings.__class__ = type("Plain", (nn.Module,), {"forward": lambda _, images: embedded.x})
    tokens, _ = _by_hand(model, x)
    ttf.remove(model)
    other = ttf.apply(build(DINOV3), **SOFT)
    torch.testing.assert_close(other(x).last_hidden_state, encoder.norm(tokens), **CLOSE)


# larger models


def _clip(build: Build, kind: str = "CLIP") -> Any:
    return build((f"{kind}Model", f"{kind}Config", {**BOTH}))


@pytest.mark.parametrize("kind", ["CLIP", "Siglip"])
def test_towers_inside_of_two_tower_models(kind: str, build: Build, images: Images) -> None:
    model, x = _clip(build, kind), images()
    words = torch.randint(2, 48, (2, 7))
    before, text = model(input_ids=words, pixel_values=x), model.get_text_features(words)
    ttf.apply(model, ratio=1.0)
    assert _same(model(input_ids=words, pixel_values=x), before)
    ttf.apply(model, ratio=0.5)
    out = model(input_ids=words, pixel_values=x)
    assert type(out) is type(before)
    assert torch.equal(out.text_embeds, before.text_embeds) and not torch.equal(out.image_embeds, before.image_embeds)
    assert _same(model.get_text_features(words), text)
    features = model.get_image_features(x)
    features = features if isinstance(features, Tensor) else features.pooler_output
    torch.testing.assert_close(out.image_embeds, features / features.norm(dim=-1, keepdim=True))
    assert [layer.block for layer in ttf.trace(model, x)] == [1, 3, 4]
    assert _same(ttf.remove(model)(input_ids=words, pixel_values=x), before)


def _llava(build: Build, kind: str = "Llava", tower: str = "CLIP", **changes: Any) -> Any:
    vision = getattr(transformers, f"{tower}VisionConfig")(**VISION)
    text = {**TEXT, "num_key_value_heads": 3, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    fields = {
        "vision_config": vision, "text_config": transformers.LlamaConfig(**text), "image_token_index": 40, **changes,
    }  # fmt: skip
    return build((f"{kind}ForConditionalGeneration", f"{kind}Config", {}), **fields)


def _prompt(placeholders: int) -> Tensor:
    return torch.tensor([[1, 5, *[40] * placeholders, 7, 8]]).expand(2, -1)


@pytest.mark.parametrize("tower", ["CLIP", "Siglip"])
def test_llava_with_recovered_tokens_works_unchanged(tower: str, build: Build, images: Images) -> None:
    strategy = "default" if tower == "CLIP" else "full"
    model, x = _llava(build, tower=tower, vision_feature_select_strategy=strategy), images()
    before = model(input_ids=_prompt(64), pixel_values=x)
    text = model(input_ids=_prompt(0))
    assert _same(ttf.apply(model, ratio=1.0)(input_ids=_prompt(64), pixel_values=x).logits, before.logits)
    out = ttf.apply(model, ratio=0.5, recover=True)(input_ids=_prompt(64), pixel_values=x)
    assert type(out) is type(before) and out.logits.shape == before.logits.shape
    assert not torch.equal(out.logits, before.logits)
    assert torch.equal(model(input_ids=_prompt(0)).logits, text.logits)
    told = {"max_new_tokens": 3, "do_sample": False}
    assert model.generate(input_ids=_prompt(64), pixel_values=x, **told).shape[1] <= 71
    assert torch.equal(ttf.remove(model)(input_ids=_prompt(64), pixel_values=x).logits, before.logits)


def test_llava_with_short_tokens_takes_as_many_placeholders(build: Build, images: Images) -> None:
    model, x = ttf.apply(_llava(build), ratio=0.5), images()
    with pytest.raises(ValueError, match="features and image tokens do not match"):
        model(input_ids=_prompt(64), pixel_values=x)
    logits = model(input_ids=_prompt(8), pixel_values=x).logits
    tower = model.model.vision_tower(x, output_hidden_states=True).hidden_states[-2]
    assert tower.shape == (2, 9, 48)
    inner = model.model
    embeds = model.get_input_embeddings()(_prompt(8)).clone()
    embeds[:, 2:10] = inner.multi_modal_projector(tower[:, 1:])
    torch.testing.assert_close(model(inputs_embeds=embeds).logits, logits, **CLOSE)


def test_llava_next_takes_dense_tiles(build: Build) -> None:
    model = _llava(build, "LlavaNext", image_grid_pinpoints=[[32, 64], [64, 32]], image_token_index=40)
    tiles = torch.randn(1, 3, 3, 32, 32)  # low resolution, and two tiles
    sizes = torch.tensor([[32, 64]])
    told = {"pixel_values": tiles, "image_sizes": sizes}
    words = _prompt(64 + 8 * 17)[:1]  # a learned newline behind each of the eight rows
    before = model(input_ids=words, **told).logits
    assert torch.equal(ttf.apply(model, ratio=1.0)(input_ids=words, **told).logits, before)
    out = ttf.apply(model, ratio=0.5, recover=True)(input_ids=words, **told).logits
    assert out.shape == before.shape and not torch.equal(out, before)


def test_language_models_of_refused_families_are_no_reason_to_refuse(build: Build, images: Images) -> None:
    text = transformers.Qwen2Config(**TEXT, num_key_value_heads=3, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    model = _llava(build, text_config=text)
    out = ttf.apply(model, recover=True)(input_ids=_prompt(64), pixel_values=images())
    assert out.logits.shape == (2, 68, 50)


# refused


def _qwen(name: str) -> nn.Module:
    if name == "Qwen2VL":
        config = transformers.Qwen2VLConfig(
            vision_config={"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2}
        )
        from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel as Tower
    elif name == "Qwen2_5_VL":
        sizes = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32}
        config = transformers.Qwen2_5_VLConfig(vision_config=sizes)
        from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel as Tower
    else:
        sizes = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32}
        config = transformers.Qwen3VLConfig(vision_config={**sizes, "deepstack_visual_indexes": [0]})
        from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel as Tower
    return Tower._from_config(config.vision_config)


@pytest.mark.parametrize("name", ["Qwen2VL", "Qwen2_5_VL", "Qwen3VL"])
def test_qwens_towers_are_refused_by_name(name: str) -> None:
    model = _qwen(name)
    with pytest.raises(ValueError, match=f"{type(model).__name__} cannot be compressed: Qwen's towers pack images"):
        ttf.apply(model)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (("BeitModel", "BeitConfig", VISION), "BeitModel cannot be compressed: BEiT adds a relative position bias"),
        (
            ("Siglip2VisionModel", "Siglip2VisionConfig", {**VISION, "num_patches": 64}),
            "SigLIP 2 packs images of several",
        ),
        (("Data2VecVisionModel", "Data2VecVisionConfig", VISION), "Data2Vec adds a relative position bias"),
        (("BertModel", "BertConfig", TEXT), "BertModel has 0 vision encoders that ttf knows"),
    ],
)
def test_refused_by_name(kind: Any, why: str, build: Build) -> None:
    model = build(kind)
    with pytest.raises(ValueError, match=why):
        ttf.apply(model)


def test_models_with_several_towers_are_refused(build: Build, images: Images) -> None:
    model, x = build(CLIP), images()
    before = model(x).pooler_output
    model.add_module("second", build(ENCODERS["vit"]))
    with pytest.raises(ValueError, match="CLIPVisionModel has 2 vision encoders"):
        ttf.apply(model)
    assert torch.equal(model(x).pooler_output, before)
    ttf.apply(model.second)
    assert model.second(x).last_hidden_state.shape[1] < 65


def test_layers_that_lack_a_part_are_refused(build: Build) -> None:
    model = build(ENCODERS["vit"])
    blocks_of(model, ttf.hosts.find(model))[2].layernorm_after = None
    with pytest.raises(ValueError, match="ViTLayer has no norms that ttf knows by name"):
        ttf.apply(model)


def test_a_plan_can_be_changed_for_a_twin(build: Build, images: Images) -> None:
    model, x = ttf.apply(build(CLIP), ratio=0.5), images()
    twin = ttf.core.entry.twin(model, lambda plan: replace(plan, recovery="nearest"))
    assert twin(x).last_hidden_state.shape[1] == 65 and model(x).last_hidden_state.shape[1] == 9


def test_size_bias_of_the_pool_is_one_row_per_head() -> None:
    bias = size_bias(torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.float32)
    rows = bias[:, 0].repeat_interleave(3, dim=0).expand(-1, 1, -1)
    assert rows.shape == (6, 1, 2) and rows[3, 0, 1] == -torch.inf
