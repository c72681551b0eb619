"""Vision encoders of transformers against themselves and a run by hand: tokens, outputs, images of other sizes."""

from __future__ import annotations

from collections.abc import Iterator
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
    SOFT,
    Build,
    Images,
    all_tensors,
    encoder_of,
    last_norm,
    run_by_hand,
    same_tensors,
)
from ttf.core.entry import blocks_of

transformers: Any = pytest.importorskip("transformers", reason="needs transformers: pip install 'ttf[hf]'")


@pytest.mark.parametrize("name", ENCODERS)
def test_compressed_tokens_equal_the_run_by_hand(name: str, build: Build, images: Images) -> None:
    model, x = ttf.apply(build(ENCODERS[name]), **SOFT), images()
    tokens, _ = run_by_hand(model, x)
    assert tokens.shape[1] == ttf.plan(model).prefix + 8  # 64 -> 32 -> 16 -> 8
    torch.testing.assert_close(model(x).last_hidden_state, last_norm(encoder_of(model))(tokens), **CLOSE)


def test_every_twin_records_its_hidden_states_once(build: Build, images: Images) -> None:
    """transformers hooks the layers of a model when it first records: those of a twin are not the model's."""
    model, x = ttf.apply(build(CLIP), **SOFT), images()
    first, second = (ttf.twin(model)(x, output_hidden_states=True) for _ in range(2))
    own = model(x, output_hidden_states=True)
    assert same_tensors(first, second) and same_tensors(own, first) and len(own.hidden_states) == 7


# ratio 1, remove


@pytest.mark.parametrize("name", MODELS)
def test_ratio_one_changes_no_bit_and_no_key(name: str, build: Build, images: Images) -> None:
    model, x = build(MODELS[name]), images()
    before, keys = model(x, output_hidden_states=True), list(model.state_dict())
    ttf.apply(model, ratio=1.0)
    after = model(x, output_hidden_states=True)
    assert same_tensors(after, before) and type(after) is type(before)
    assert after.hidden_states is not None and len(after.hidden_states) == 7
    assert list(model.state_dict()) == keys


@pytest.mark.parametrize("name", MODELS)
def test_remove_restores_every_bit(name: str, build: Build, images: Images) -> None:
    model, x = build(MODELS[name]), images()
    before, kinds = model(x, output_hidden_states=True), [type(module) for module in model.modules()]
    attributes = [set(vars(module)) for module in model.modules()]
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    ttf.apply(model)
    assert not same_tensors(model(x, output_hidden_states=True), before)
    assert list(model.state_dict()) == list(weights)
    ttf.remove(model)
    assert [type(module) for module in model.modules()] == kinds
    assert [set(vars(module)) - {"forward"} for module in model.modules()] == [a - {"forward"} for a in attributes]
    assert same_tensors(model(x, output_hidden_states=True), before)
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
        assert all(type(tensor) is Tensor for tensor in all_tensors(out)) and type(out) is type(plain)
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
    assert same_tensors(model(x, output_hidden_states=True, return_dict=False), expected)
    assert model(x).hidden_states is None
    encoder_of(model).config.output_hidden_states = model.config.output_hidden_states = True
    assert same_tensors(model(x).hidden_states, expected.hidden_states)


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
    if same_tensors(model(x, **mask), model(x)) and not old:
        pytest.skip("this version takes no mask")
    ttf.apply(model)
    with pytest.raises(ValueError, match="takes no attention mask"):
        model(x, **mask)
    assert same_tensors(model(x, **dict.fromkeys(mask)), model(x))


# images of other sizes


@pytest.mark.parametrize("name", ["clip", "siglip", "vit", "dinov2", "dinov3"])
def test_images_of_other_sizes_have_their_own_grid(name: str, build: Build, images: Images) -> None:
    model, x = build(ENCODERS[name]), images(2, 64, 16)  # 16 x 4 patches, as many as the 8 x 8 of the configuration
    more = {} if name.startswith("dino") else {"interpolate_pos_encoding": True}
    before = model(x, output_hidden_states=True, **more)
    assert same_tensors(ttf.apply(model, ratio=1.0)(x, output_hidden_states=True, **more), before)
    for recover, tokens in ((False, 16), (True, 64)):  # pooled to half the rows and half the columns
        ttf.apply(model, "uniform_pool", ratio=0.25, blocks=[2], recover=recover) if name != "dinov3" else ttf.apply(
            model, ratio=0.25, blocks=[2], recover=recover
        )
        out = model(x, output_hidden_states=True, **more)
        assert all(type(tensor) is Tensor for tensor in all_tensors(out))
        assert out.last_hidden_state.shape[1] == tokens + ttf.plan(model).prefix
        assert same_tensors(out.hidden_states[:3], before.hidden_states[:3])
    if name.startswith("dinov2"):
        matrix = ttf.trace(model, x)[0].W[0, 1:, 1:].unflatten(1, (16, 4))
        assert torch.equal(matrix[1].nonzero(), torch.tensor([[0, 2], [0, 3], [1, 2], [1, 3]]))
        assert ttf.trace(model, x)[0].grid == (16, 4)


def test_dinov3_rotates_by_the_places_of_other_grids(build: Build, images: Images) -> None:
    model, x = ttf.apply(build(DINOV3), **SOFT), images(2, 40, 24)
    encoder = encoder_of(model)
    embedded = encoder.embeddings(x)
    assert embedded.grid == (10, 6)
    encoder.embeddings.__class__ = type("Plain", (nn.Module,), {"forward": lambda _, images: embedded.x})
    tokens, _ = run_by_hand(model, x)
    ttf.remove(model)
    other = ttf.apply(build(DINOV3), **SOFT)
    torch.testing.assert_close(other(x).last_hidden_state, encoder.norm(tokens), **CLOSE)
