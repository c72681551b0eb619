"""Vision encoders of transformers: pools that see sizes, attention implementations, every method."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ttf
from tests.hosts.hf_models import (
    CLASSIFIERS,
    CLIP,
    CLOSE,
    DINOV3,
    ENCODERS,
    MODELS,
    SIGLIP,
    SOFT,
    Build,
    Images,
    all_tensors,
    encoder_of,
    last_norm,
    run_by_hand,
    same_tensors,
    weighted_mean,
)
from tests.methods_under_test import CASES, MethodCase
from ttf.core.entry import blocks_of
from ttf.methods.prune_and_merge import PruneAndMerge, matrices

transformers: Any = pytest.importorskip("transformers", reason="needs transformers: pip install 'ttf[hf]'")


# pools


POOLED = ["dinov2", "dinov2, registers", "clip", "siglip"]


@pytest.mark.parametrize("options", [{}, {"gate": "mask", "kappa": 0.1}], ids=str)
@pytest.mark.parametrize("name", POOLED)
def test_mean_pools_weigh_tokens_by_size(name: str, options: dict[str, Any], build: Build, images: Images) -> None:
    model, x = ttf.apply(build(CLASSIFIERS[name]), **SOFT, **options), images()
    tokens, sizes = run_by_hand(model, x)
    tokens, prefix = last_norm(encoder_of(model))(tokens), ttf.plan(model).prefix
    assert sizes[:, prefix:].std() > 0.5
    pooled = weighted_mean(tokens[:, prefix:], sizes[:, prefix:])
    pooled = torch.cat((tokens[:, 0], pooled), dim=1) if name.startswith("dinov2") else pooled
    torch.testing.assert_close(model(x).logits, model.classifier(pooled), **CLOSE)


def test_siglips_pooling_head_sees_sizes(build: Build, images: Images) -> None:
    model, x = ttf.apply(build(SIGLIP), **SOFT), images()
    encoder, (tokens, sizes) = encoder_of(model), run_by_hand(model, x)
    head, tokens = encoder.head, encoder.post_layernorm(tokens)
    q, k, v = (
        (part @ weight.T + bias).unflatten(2, (3, 16)).transpose(1, 2)
        for part, weight, bias in zip(
            (head.probe.expand(2, -1, -1), tokens, tokens),
            head.attention.in_proj_weight.chunk(3),
            head.attention.in_proj_bias.chunk(3),
            strict=True,
        )
    )
    weights = sizes[:, None, None] * torch.exp(q @ k.transpose(2, 3) / 4)
    pooled = head.attention.out_proj(((weights / weights.sum(-1, keepdim=True)) @ v).transpose(1, 2).flatten(2))
    pooled = pooled + head.mlp(head.layernorm(pooled))
    torch.testing.assert_close(model(x).pooler_output, pooled[:, 0], **CLOSE)


@pytest.mark.parametrize("name", ["siglip, encoder", "clip, classifier", "dinov2, classifier", "siglip, classifier"])
def test_recovered_models_pool_dense_tokens(name: str, build: Build, images: Images) -> None:
    model, x = ttf.apply(build(MODELS[name]), recover=True), images()
    out = model(x, output_hidden_states=True)
    encoder: Any = encoder_of(model)
    dense = encoder(x).last_hidden_state
    assert dense.shape[1] == 64 + ttf.plan(model).prefix
    ttf.remove(model)
    torch.testing.assert_close(last_norm(encoder)(out.hidden_states[-1]), dense)
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
    for one, other in zip(*map(all_tensors, outs), strict=True):
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
    assert not same_tensors(out, before) and all(bool(tensor.isfinite().all()) for tensor in all_tensors(out))
    layers = ttf.trace(model, x)
    assert layers and all(layer.W.shape[1] < layer.W.shape[2] for layer in layers)
    dense = ttf.apply(model, method, ratio=0.7, blocks=(1, 3), recover=True)(x, output_hidden_states=True)
    assert [state.shape[1] for state in dense.hidden_states] == [64 + ttf.plan(model).prefix] * 7
    assert same_tensors(ttf.remove(model)(x), before)


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
