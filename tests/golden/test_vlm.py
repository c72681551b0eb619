"""Vision towers of vision-language models against what transformers and LLaVA-PruMerge computed.

Folder of the reference data: TTF_GOLDEN_VLM, default ../shared/golden/vlm. Rules (weights from the official names,
tolerances) are those of the README beside the data; a field ``fill_salt`` is honoured.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

import ttf
from tests.golden.models import draw
from ttf import hosts
from ttf.core import entry
from ttf.core.plan import Observer, Plan
from ttf.methods import LayerView
from ttf.methods.prumerge import PruMerge, class_attention
from ttf.methods.uniform import UniformStride
from ttf.ops.attention import Wanted
from ttf.schedule import Counts, KeepRatio

transformers: Any = pytest.importorskip("transformers", reason="needs transformers: pip install 'ttf[hf]'")

FOLDER = Path(os.environ.get("TTF_GOLDEN_VLM", Path(__file__).parents[3] / "shared" / "golden" / "vlm"))
LIMIT = 2e-5  # relative L2; mistakes move 0.2 % and more, but for the epsilon of norms, which is compared by itself
FILLS = ["fill", "strong_fill"]
NOISE = 1e-5  # relative, of what orders tokens: ten times what two ways of computing differ by


def _official(name: str) -> str:
    """Name of a parameter in the files of the hub, from that of any version of transformers."""
    for ours, theirs in (("model.language_model.", "language_model.model."), ("lm_head.", "language_model.lm_head.")):
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    name = name.removeprefix("model.")
    if name.startswith("multi_modal_projector."):
        return name
    tower, inner = "vision_tower." if name.startswith("vision_tower.") else "", name.removeprefix("vision_tower.")
    return f"{tower}vision_model.{inner.removeprefix('vision_model.')}"


def _fill(model: nn.Module, std: float, salt: str) -> dict[str, Any]:
    """Deterministic weights, and the sums over them."""
    sums = {"tensors": 0, "elements": 0, "sum": 0.0, "sum_of_squares": 0.0}
    for name, entry_ in model.state_dict().items():
        entry_.copy_(draw(_official(name), entry_.shape, std, salt))
        values = entry_.double()
        parts = (1, entry_.numel(), values.sum().item(), values.square().sum().item())
        sums = {key: total + part for (key, total), part in zip(sums.items(), parts, strict=True)}
    return sums


@dataclass(frozen=True)
class Reference:
    """One file: what it says, and its tensors."""

    golden: dict[str, Any]
    tensors: dict[str, Tensor]

    def filled(self, model: nn.Module, std: float, check: dict[str, Any]) -> Any:
        """The model with the weights of a fill, whose sums are compared first."""
        sums, check = _fill(model.eval(), std, self.golden.get("fill_salt", "")), dict(check)
        assert not check.pop("not_filled")
        assert sums == pytest.approx(check, rel=1e-7, abs=0.05)
        return model


@cache
def _read(stem: str) -> Reference:
    path = FOLDER / f"{stem}.json"
    if not path.is_file():
        pytest.skip(f"needs the reference data of vision-language models: no {path}")
    return Reference(json.loads(path.read_text()), load_file(path.with_suffix(".safetensors")))


def _close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert ((found - expected).norm() / expected.norm()).item() <= LIMIT


def _check_eps(model: nn.Module, config: dict[str, Any]) -> None:
    """Tolerances cannot see the epsilon of norms."""
    assert {m.eps for m in model.modules() if isinstance(m, nn.LayerNorm)} == {config["layer_norm_eps"]}


# the tower alone


class _Watch(Observer):
    """Everything that a layer can be asked for, of all layers."""

    wanted = Wanted(score_rows="all", attention=True, normed=True, projections=True)

    def __init__(self, depth: int) -> None:
        self.blocks, self.views = tuple(range(depth)), dict[int, LayerView]()

    def view(self, block: int, view: LayerView) -> None:
        self.views[block] = view


def _watched(model: nn.Module, images: Tensor) -> dict[int, LayerView]:
    """What the layers of an uncompressed model know after their attention."""
    host, depth = hosts.find(model), model.config.num_hidden_layers
    watch = _Watch(depth)
    entry.enter(model, Plan(UniformStride(), KeepRatio(1.0, ()), host, 1, True, observer=watch))
    model(images)
    entry.leave_model(model)
    return watch.views


def _tower(fill: str, attention: str = "eager") -> tuple[Any, Reference]:
    reference = _read("clip_tower")
    config = transformers.CLIPVisionConfig(**reference.golden["config"])
    model = transformers.CLIPVisionModel._from_config(config, attn_implementation=attention)
    _check_eps(model, reference.golden["config"])
    described = reference.golden[fill]
    return reference.filled(model, described["std"], described["fill_check"]), reference


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("options", [None, {"ratio": 1.0}, {"ratio": 1.0, "recover": True}], ids=str)
@pytest.mark.parametrize("fill", FILLS)
@torch.no_grad()
def test_hidden_states_of_the_tower(fill: str, options: dict[str, Any] | None, attention: str) -> None:
    model, reference = _tower(fill, attention)
    if options is not None:
        ttf.apply(model, **options)
    out = model(reference.tensors["pixel_values"], output_hidden_states=True)
    for number, state in enumerate(out.hidden_states):
        _close(state, reference.tensors[f"{fill}/hidden_states.{number}"])
    _close(out.last_hidden_state, reference.tensors[f"{fill}/hidden_states.{len(out.hidden_states) - 1}"])
    _close(out.pooler_output, reference.tensors[f"{fill}/pooler_output"])


@pytest.mark.parametrize("fill", FILLS)
@torch.no_grad()
def test_halves_of_layers(fill: str) -> None:
    """``attend`` gives what goes into the second norm, ``feed_forward`` of that the next hidden state."""
    model, reference = _tower(fill)
    views = _watched(model, reference.tensors["pixel_values"])
    assert len(views) == model.config.num_hidden_layers
    host = hosts.find(model)
    for number, layer in enumerate(entry.blocks_of(model, host)):
        _close(views[number].x, reference.tensors[f"{fill}/after_attention.{number}"])
        _close(host.feed_forward(layer, views[number].x), reference.tensors[f"{fill}/hidden_states.{number + 1}"])
        _close(views[number].normed, layer.layer_norm2(reference.tensors[f"{fill}/after_attention.{number}"]))


@pytest.mark.parametrize("fill", FILLS)
@torch.no_grad()
def test_scores_are_column_sums_of_the_maps(fill: str) -> None:
    model, reference = _tower(fill)
    views = _watched(model, reference.tensors["pixel_values"])
    maps = {int(k.rsplit(".", 1)[1]): v for k, v in reference.tensors.items() if k.startswith(f"{fill}/attentions.")}
    assert maps
    for number, expected in maps.items():
        _close(views[number].attention, expected)
        _close(views[number].scores, expected.mean(dim=1).sum(dim=1))


@pytest.mark.parametrize("fill", FILLS)
@torch.no_grad()
def test_reduced_layers_start_from_the_same_tokens(fill: str) -> None:
    """Before the first reduction nothing differs; the reducing layer passes W X on, X being tokens after attention."""
    model, reference = _tower(fill)
    x, tensors, first = reference.tensors["pixel_values"], reference.tensors, 2
    out = ttf.apply(model, ratio=0.5, blocks=[first])(x, output_hidden_states=True)
    for number in range(first + 1):
        _close(out.hidden_states[number], tensors[f"{fill}/hidden_states.{number}"])
    (layer,) = ttf.trace(model, x)
    assert layer.grid[0] * layer.grid[1] == tensors[f"{fill}/hidden_states.0"].shape[1] - 1
    reduced = layer.W @ tensors[f"{fill}/after_attention.{first}"]
    block = entry.blocks_of(model, ttf.plan(model).host)[first]
    _close(out.hidden_states[first + 1], ttf.plan(model).host.feed_forward(block, reduced))


# LLaVA


def _llava(fill: str) -> tuple[Any, Reference]:
    reference = _read("llava")
    golden = reference.golden
    names = ("image_token_index", "vision_feature_layer", "vision_feature_select_strategy", "projector_hidden_act")
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**golden["vision_config"]),
        text_config=transformers.LlamaConfig(**golden["text_config"]),
        **{name: golden[name] for name in names},
    )
    model = transformers.LlavaForConditionalGeneration._from_config(config, attn_implementation="eager")
    _check_eps(model.model.vision_tower, golden["vision_config"])
    return reference.filled(model, golden[fill]["std"], golden[fill]["fill_check"]), reference


def _selected(model: Any, images: Tensor) -> Tensor:
    """What LLaVA takes from its tower, the class token gone."""
    return model.model.vision_tower(images, output_hidden_states=True).hidden_states[model.config.vision_feature_layer][
        :, 1:
    ]


def _spliced(model: Any, ids: Tensor, features: Tensor) -> Tensor:
    """Logits of a prompt whose placeholders stand for features (M, C)."""
    embeds = model.get_input_embeddings()(ids).clone()
    embeds[ids == model.config.image_token_index] = features
    return model(inputs_embeds=embeds, attention_mask=torch.ones_like(ids)).logits


@pytest.mark.parametrize("options", [None, {"ratio": 1.0}, {"ratio": 1.0, "recover": True}], ids=str)
@pytest.mark.parametrize("fill", FILLS)
@torch.no_grad()
def test_llava(fill: str, options: dict[str, Any] | None) -> None:
    model, reference = _llava(fill)
    if options is not None:
        ttf.apply(model, **options)
    tensors = reference.tensors
    x, ids, mask = (tensors[name] for name in ("pixel_values", "input_ids", "attention_mask"))
    expected = {name.removeprefix(f"{fill}/"): t for name, t in tensors.items() if name.startswith(f"{fill}/")}
    features = _selected(model, x)
    _close(features, expected["selected_features"])
    projected = model.model.multi_modal_projector(features)
    _close(projected, expected["projected_features"])
    real = mask.bool()
    _close(model(input_ids=ids, attention_mask=mask, pixel_values=x).logits[real], expected["logits"][real])
    _close(model(input_ids=ids[:1], pixel_values=x[:1]).logits, expected["logits_one"])
    _close(_spliced(model, tensors["input_ids_short"], projected[0, ::2]), expected["logits_short"])
    behind = int((ids[0] == model.config.image_token_index).nonzero().max()) + 1
    words = torch.cat((ids[:1, :1], ids[:1, behind:]), dim=1)
    _close(model(input_ids=words).logits, expected["logits_text_only"])
    full = {"pixel_values": x[:1], "vision_feature_select_strategy": "full"}
    _close(model(input_ids=tensors["input_ids_full"], **full).logits, expected["logits_full"])
    told = {"attention_mask": mask, "max_new_tokens": expected["generated"].shape[1], "do_sample": False}
    out = model.generate(input_ids=ids, pixel_values=x, **told)
    assert torch.equal(out[:, ids.shape[1] :], expected["generated"])


@pytest.mark.parametrize("fill", FILLS)
@torch.no_grad()
def test_llava_with_compressed_towers(fill: str) -> None:
    model, reference = _llava(fill)
    tensors = reference.tensors
    x, ids, mask = (tensors[name] for name in ("pixel_values", "input_ids", "attention_mask"))
    ttf.apply(model, ratio=0.5, blocks=[1], recover=True)
    assert _selected(model, x).shape == tensors[f"{fill}/selected_features"].shape
    logits = model(input_ids=ids, attention_mask=mask, pixel_values=x).logits
    assert logits.shape == tensors[f"{fill}/logits"].shape and bool(logits[mask.bool()].isfinite().all())
    assert (logits - tensors[f"{fill}/logits"])[mask.bool()].norm() > 100 * LIMIT * tensors[f"{fill}/logits"].norm()
    places = int((tensors["input_ids_short"] == model.config.image_token_index).sum())
    ttf.apply(model, schedule=Counts(((1, places),)))
    short = _selected(model, x)
    assert short.shape[1] == places < reference.golden["image_tokens"]
    with pytest.raises(ValueError, match="features and image tokens do not match"):
        model(input_ids=ids[:1], pixel_values=x[:1])
    logits = model(input_ids=tensors["input_ids_short"], pixel_values=x[:1]).logits
    projected = model.model.multi_modal_projector(short)[0]
    _close(logits, _spliced(model, tensors["input_ids_short"], projected))


# PruMerge


RECIPE = re.compile(
    r"generator (\d+) normal \((\d+),3,(\d+),\3\), zero-padded by (\d+), (\d+)x\5 box mean, times (\d+), "
    r"plus generator (\d+) normal \(\2,3,1,1\)"
)


def _smooth(golden: dict[str, Any]) -> Tensor:
    """The images of the recipe in the file."""
    found = RECIPE.fullmatch(golden["input"])
    assert found, f"another recipe: {golden['input']}"
    seed, count, side, padding, box, factor, second = map(int, found.groups())
    noise = torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))
    x = F.avg_pool2d(noise, box, stride=1, padding=padding) * factor
    x = x + torch.randn(count, 3, 1, 1, generator=torch.Generator().manual_seed(second))
    assert x.double().square().sum().item() == pytest.approx(golden["pixel_values_sum_of_squares"], rel=1e-6)
    return x


@cache
def _prumerge() -> tuple[Reference, LayerView]:
    """The tower up to its last layer: tokens that go into it, and its queries and keys."""
    reference = _read("prumerge_tower")
    golden = reference.golden
    config = transformers.CLIPVisionConfig(**golden["config"])
    model = transformers.CLIPVisionModel._from_config(config, attn_implementation="eager")
    _check_eps(model, golden["config"])
    reference.filled(model, golden["fill_std"], golden["fill_check"])
    images = _smooth(golden)
    with torch.no_grad():
        features = model(images, output_hidden_states=True).hidden_states[-2]
        last = _watched(model, images)[golden["config"]["num_hidden_layers"] - 1]
    return reference, LayerView(features, 1, class_query=last.class_query, flat_keys=last.flat_keys)


VARIANTS = {
    "base_adaptive": PruMerge(outliers=True),
    "base_eighth": PruMerge(),
    "plus_adaptive": PruMerge(plus=True, outliers=True),
}


@pytest.mark.parametrize("image", [0, 1])
@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_prumerge_behind_the_tower(variant: str, image: int) -> None:
    """The official code merges what goes into the last layer, by the queries and keys of that layer.

    ``ttf.apply(..., "prumerge")`` merges inside of a layer, tokens behind its attention: the rule is the same, the
    place is not, so the rule is compared on what the tower gives.
    """
    reference, view = _prumerge()
    name, method = f"image{image}/{variant}", VARIANTS[variant]
    case, expected = reference.golden["cases"][name], reference.tensors[name][0]
    if case["relative_margin_of_selection"] < NOISE:
        pytest.skip(f"{name}: two tokens are too close to the cut")
    _close(view.x[image : image + 1, 1:], reference.tensors[f"image{image}/selected_features"])
    one = LayerView(
        view.x[image : image + 1],
        1,
        class_query=view.class_query[image : image + 1],
        flat_keys=view.flat_keys[image : image + 1],
    )
    _close(class_attention(one.class_query, one.flat_keys), reference.tensors[f"image{image}/class_attention"])
    y, reduction = method(one, one.x.shape[1] if method.adaptive else case["tokens"] + 1)
    assert y.shape[1] == case["tokens"] + 1
    assert torch.equal(y[0, 0], one.x[0, 0])
    if not method.plus:
        assert reduction.kept.shape[1] == case["kept_by_score"] + 1
    _close(y[0, 1:], expected)
