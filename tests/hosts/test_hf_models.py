"""Vision encoders of transformers: hooks, checkpointing, copies, inside of larger models, and what is refused."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ttf
from tests.hosts.hf_models import (
    BOTH,
    CLIP,
    CLOSE,
    ENCODERS,
    MODELS,
    SOFT,
    TEXT,
    VISION,
    Build,
    Images,
    all_tensors,
    encoder_of,
    same_tensors,
)
from ttf.core.entry import blocks_of
from ttf.ops.attention import size_bias

transformers: Any = pytest.importorskip("transformers", reason="needs transformers: pip install 'ttf[hf]'")
# torch 2.10 traces no methods of named tuples, which heads call: there a compiled model has one graph more
ONE_GRAPH = tuple(map(int, torch.__version__.split(".")[:2])) > (2, 10)


# what hangs on modules


def _calls(model: nn.Module, x: Tensor) -> dict[str, int]:
    """How often every module of the layers is called."""
    calls: dict[str, int] = {}
    encoder = encoder_of(model)

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
    out, expected = all_tensors(model(x)), _gradients(model, x)
    assert any("layers.0" in key or "layer.0" in key for key in expected)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    calls: list[int] = []
    norms = [m for m in blocks_of(model, ttf.plan(model).host)[-1].modules() if isinstance(m, nn.LayerNorm)]
    norms[0].register_forward_pre_hook(lambda _, inputs: calls.append(inputs[0].shape[1]))
    torch.testing.assert_close(all_tensors(model(x)), out)
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
    return all_tensors(torch.compile(model, backend="aot_eager", fullgraph=ONE_GRAPH)(x))


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
    torch.testing.assert_close(out, all_tensors(ttf.apply(model, **SOFT, blocks=[0])(x)), **CLOSE)


@pytest.mark.parametrize("name", ["clip, encoder", "siglip, encoder", "vit, classifier", "dinov3, encoder"])
def test_copies_and_pickles(name: str, build: Build, images: Images) -> None:
    model, x = ttf.apply(build(MODELS[name])), images()
    expected = model(x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert same_tensors(other(x), expected)
        assert not same_tensors(ttf.remove(other)(x), expected)
        assert same_tensors(model(x), expected)


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
    assert same_tensors(loaded(x), before)
    assert same_tensors(ttf.apply(loaded)(x), model(x))


@pytest.mark.parametrize("name", ["clip, encoder", "vit, classifier", "dinov2, classifier", "dinov3, encoder"])
def test_bfloat16(name: str, build: Build, images: Images) -> None:
    model, x = ttf.apply(build(MODELS[name]), **SOFT), images(8)
    expected = all_tensors(model(x))[-1]
    out = all_tensors(model.to(torch.bfloat16)(x.bfloat16()))[-1]
    assert out.dtype == torch.bfloat16
    assert ((out.float() - expected).square().mean().sqrt() / expected.std()).item() < 0.05
    assert all(layer.W.dtype == torch.float32 for layer in ttf.trace(model, x.bfloat16()))


# larger models


def _clip(build: Build, kind: str = "CLIP") -> Any:
    return build((f"{kind}Model", f"{kind}Config", {**BOTH}))


@pytest.mark.parametrize("kind", ["CLIP", "Siglip"])
def test_towers_inside_of_two_tower_models(kind: str, build: Build, images: Images) -> None:
    model, x = _clip(build, kind), images()
    words = torch.randint(2, 48, (2, 7))
    before, text = model(input_ids=words, pixel_values=x), model.get_text_features(words)
    ttf.apply(model, ratio=1.0)
    assert same_tensors(model(input_ids=words, pixel_values=x), before)
    ttf.apply(model, ratio=0.5)
    out = model(input_ids=words, pixel_values=x)
    assert type(out) is type(before)
    assert torch.equal(out.text_embeds, before.text_embeds) and not torch.equal(out.image_embeds, before.image_embeds)
    assert same_tensors(model.get_text_features(words), text)
    features = model.get_image_features(x)
    features = features if isinstance(features, Tensor) else features.pooler_output
    torch.testing.assert_close(out.image_embeds, features / features.norm(dim=-1, keepdim=True))
    assert [layer.block for layer in ttf.trace(model, x)] == [1, 3, 4]
    assert same_tensors(ttf.remove(model)(input_ids=words, pixel_values=x), before)


def _llava(build: Build, kind: str = "Llava", tower: str = "CLIP", **changes: Any) -> Any:
    vision = getattr(transformers, f"{tower}VisionConfig")(**VISION)
    text = {**TEXT, "num_key_value_heads": 3, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    fields = {
        "vision_config": vision,
        "text_config": transformers.LlamaConfig(**text),
        "image_token_index": 40,
        **changes,
    }
    return build((f"{kind}ForConditionalGeneration", f"{kind}Config", {}), **fields)


def _prompt(placeholders: int) -> Tensor:
    return torch.tensor([[1, 5, *[40] * placeholders, 7, 8]]).expand(2, -1)


@pytest.mark.parametrize("tower", ["CLIP", "Siglip"])
def test_llava_with_recovered_tokens_works_unchanged(tower: str, build: Build, images: Images) -> None:
    strategy = "default" if tower == "CLIP" else "full"
    model, x = _llava(build, tower=tower, vision_feature_select_strategy=strategy), images()
    before = model(input_ids=_prompt(64), pixel_values=x)
    text = model(input_ids=_prompt(0))
    assert same_tensors(ttf.apply(model, ratio=1.0)(input_ids=_prompt(64), pixel_values=x).logits, before.logits)
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
