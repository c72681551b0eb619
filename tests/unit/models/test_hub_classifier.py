"""Classifiers of transformers by name or folder: their weights, their classes, and what their image processors do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from timm.data import ImageNetInfo

import ttf
from ttf.data.transforms import preprocessing
from ttf.errors import MissingError
from ttf.models.hf import HubClassifier, hf_classifier, preprocessing_of
from ttf.models.weights import at_hand, load_model, save_weights

transformers: Any = pytest.importorskip("transformers", reason="needs transformers: pip install 'ttf[hf]'")

SMALL = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "image_size": 32,
    "patch_size": 8,
}
PROCESSOR = {"size": {"height": 32, "width": 32}}


def _save(folder: Path, kind: str = "ViT", processor: dict[str, Any] | None = None, **changes: Any) -> Any:
    config = getattr(transformers, f"{kind}Config")(**{**SMALL, "num_labels": 5, **changes})
    model = getattr(transformers, f"{kind}ForImageClassification")(config).eval()
    model.save_pretrained(folder)
    transformers.ViTImageProcessor(**{**PROCESSOR, **(processor or {})}).save_pretrained(folder)
    return model


def _config(folder: Path | str, **network: Any) -> Any:
    target = {"_target_": "ttf.models.hf.hf_classifier", "name": str(folder), **network}
    return OmegaConf.create({"name": "hf", "weights": "transformers", "network": target})


# what image processors do

SHORTEST = {"do_center_crop": True, "crop_size": {"height": 224, "width": 224}}
PROCESSORS: dict[str, tuple[str, dict[str, Any]]] = {
    "ViT": ("ViTImageProcessor", {}),
    "ViT, 384": ("ViTImageProcessor", {"size": {"height": 384, "width": 384}, "resample": 3}),
    "ViT, not normalized": ("ViTImageProcessor", {"do_normalize": False}),
    "DeiT": ("DeiTImageProcessor", {}),
    "DeiT, odd": ("DeiTImageProcessor", {"size": {"height": 257, "width": 257}}),
    "CLIP": ("CLIPImageProcessor", {}),
    "DINOv2": ("BitImageProcessor", {"size": {"shortest_edge": 256}, **SHORTEST, "resample": 3}),
    "DINOv2, 97 %": ("BitImageProcessor", {"size": {"shortest_edge": 231}, **SHORTEST}),
    "SigLIP": ("SiglipImageProcessor", {}),
    "DINOv3": ("DINOv3ViTImageProcessorFast", {}),
}


@pytest.fixture(scope="module", params=[(341, 257), (500, 375), (299, 422)], ids=str)
def photograph(request: pytest.FixtureRequest) -> Image.Image:
    """Edges, gradients and noise, off black and white: Pillow and torch clip what bicubic overshoots at other times."""
    width, height = request.param
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize((width, height), 3)
    pixels = 75 + np.asarray(coarse) * 0.4 + rng.integers(-15, 16, (height, width, 3))
    pixels[height // 3 : height // 2, width // 4 : width // 3] = 185
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.mark.parametrize("fast", ["", "Fast"])
@pytest.mark.parametrize("name", PROCESSORS)
def test_the_transform_is_the_processors(name: str, fast: str, photograph: Image.Image) -> None:
    kind, fields = PROCESSORS[name]
    kind = kind if kind.endswith("Fast") else kind + fast
    if not hasattr(transformers, kind):
        pytest.skip(f"this version has no {kind}")
    processor = getattr(transformers, kind)(**fields)
    expected = processor(images=photograph, return_tensors="pt")["pixel_values"][0]
    how = preprocessing(HubClassifier(torch.nn.Identity(), preprocessing_of(processor.to_dict(), name)))
    found = how.build()(photograph)
    assert found.shape == expected.shape == how.input_size
    levels = (found - expected).abs() * torch.tensor(how.std)[:, None, None] * 255
    assert levels.max() < 2.01  # resizing rounds to whole levels, once for each side
    assert (levels > 1.01).float().mean() < 1e-4
    assert levels.mean() < 0.3


@pytest.mark.parametrize(
    "fields",
    [
        {"do_resize": False},
        {"do_rescale": False},
        {"rescale_factor": 1 / 127.5},
        {"size": {"height": 224, "width": 448}},
        {"size": {"shortest_edge": 224}},
        {"size": {"shortest_edge": 224, "longest_edge": 448}},
        {"do_center_crop": True, "crop_size": {"height": 256, "width": 256}},
        {"do_center_crop": True, "crop_size": {"height": 192, "width": 224}},
    ],
    ids=str,
)
def test_other_preprocessing_is_refused(fields: dict[str, Any]) -> None:
    known = {"size": {"height": 224, "width": 224}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2}
    assert preprocessing_of(known, "this")["crop_pct"] == 1
    with pytest.raises(ValueError, match="this prepares images in a way that ttf does not know: do_|this .*size="):
        preprocessing_of({**known, **fields}, "this")


# loading


def test_a_folder_is_loaded_with_its_weights(tmp_path: Path, images: Any) -> None:
    model, x = _save(tmp_path), images()
    loaded: Any = load_model(_config(tmp_path, classes=5))
    assert torch.equal(loaded(x), model(x).logits)
    assert loaded.get_classifier() is loaded.model.classifier
    assert not loaded.training and at_hand(_config(tmp_path)) == tmp_path / "model.safetensors"
    how = preprocessing(loaded)
    assert (how.input_size, how.mean, how.std, how.crop_mode) == ((3, 32, 32), (0.5,) * 3, (0.5,) * 3, "squash")
    assert not torch.equal(hf_classifier(str(tmp_path))(x), loaded(x))  # random weights where these are not asked for


def test_checkpoints_of_the_module_itself(tmp_path: Path, images: Any) -> None:
    model, x = _save(tmp_path), images()
    own: Any = load_model(_config(tmp_path))
    with torch.no_grad():
        own.model.classifier.bias.add_(1.0)
    save_weights(own, tmp_path / "own.safetensors")
    loaded = load_model(_config(tmp_path), tmp_path / "own.safetensors")
    assert torch.equal(loaded(x), own(x)) and not torch.equal(loaded(x), model(x).logits)


@pytest.mark.parametrize("kind", ["ViT", "DeiT"])
def test_the_module_is_a_host(kind: str, tmp_path: Path, images: Any, stir: Any) -> None:
    _save(tmp_path, kind)
    loaded: Any = stir(load_model(_config(tmp_path)))
    x = images()
    before, keys = loaded(x), list(loaded.state_dict())
    assert torch.equal(ttf.apply(loaded, ratio=1.0)(x), before)
    out = ttf.apply(loaded, ratio=0.5)(x)
    assert not torch.equal(out, before) and list(loaded.state_dict()) == keys
    layers = ttf.trace(loaded, x)
    assert [layer.block for layer in layers] == [1, 2, 3] and layers[0].grid == (4, 4)
    assert torch.equal(ttf.apply(loaded.model, ratio=0.5)(x).logits, out)
    assert ttf.measure.gmacs(loaded, (1, 3, 32, 32)) < ttf.measure.gmacs(ttf.remove(loaded), (1, 3, 32, 32))
    assert torch.equal(loaded(x), before)
    assert ttf.trace(ttf.apply(loaded, schedule="late"), x)[-1].W.shape[1] == ttf.plan(loaded).prefix + 1


def test_means_are_weighted_inside_of_the_module(tmp_path: Path, images: Any, stir: Any) -> None:
    config = transformers.Dinov2Config(**{k: v for k, v in SMALL.items() if k != "intermediate_size"}, num_labels=5)
    model = stir(transformers.Dinov2ForImageClassification(config))
    expected = ttf.apply(model, ratio=0.5)(images()).logits
    ttf.remove(model)
    assert torch.equal(ttf.apply(HubClassifier(model, {}), ratio=0.5)(images()), expected)


def test_absent_models_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        MissingError, match="no-such/model could not be loaded .*network.name=FOLDER.*save_pretrained"
    ) as e:
        load_model(_config("no-such/model"))
    assert "\n" not in str(e.value)
    with pytest.raises(MissingError, match="could not be loaded"):
        load_model(_config(tmp_path / "nowhere"))
    assert at_hand(_config("no-such/model")) is None
    _save(tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(MissingError, match="could not be loaded .*preprocessor_config.json"):
        load_model(_config(tmp_path))


def test_without_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(MissingError, match=r"need transformers: pip install 'ttf\[hf\]'"):
        hf_classifier(str(tmp_path))


def test_encoders_and_language_models_are_no_classifiers(tmp_path: Path) -> None:
    config = transformers.ViTConfig(**SMALL)
    transformers.ViTModel(config).save_pretrained(tmp_path / "encoder")
    transformers.ViTImageProcessor(**PROCESSOR).save_pretrained(tmp_path / "encoder")
    with pytest.raises(ValueError, match=r"has no weights for classifier.bias, classifier.weight"):
        load_model(_config(tmp_path / "encoder"))
    text = transformers.BertConfig(hidden_size=24, num_hidden_layers=1, num_attention_heads=2, vocab_size=9)
    transformers.BertModel(text).save_pretrained(tmp_path / "text")
    transformers.ViTImageProcessor(**PROCESSOR).save_pretrained(tmp_path / "text")
    with pytest.raises(ValueError, match="is no image classifier of transformers: ") as error:
        load_model(_config(tmp_path / "text"))
    assert "\n" not in str(error.value)


def test_classes_must_be_those_of_the_data(tmp_path: Path) -> None:
    _save(tmp_path)
    with pytest.raises(ValueError, match="has 5 classes, and the data 1000"):
        load_model(_config(tmp_path, classes=1000))


def test_imagenets_classes_must_be_in_order(tmp_path: Path) -> None:
    info = ImageNetInfo("imagenet-1k")
    labels = {index: info.index_to_description(index) for index in range(1000)}
    _save(tmp_path / "same", id2label=labels, num_labels=1000)
    assert load_model(_config(tmp_path / "same", classes=1000)).model.config.id2label[1].startswith("goldfish")
    _save(tmp_path / "plain", num_labels=1000)
    load_model(_config(tmp_path / "plain", classes=1000))
    ordered = dict(enumerate(sorted(labels.values())))
    _save(tmp_path / "sorted", id2label=ordered, num_labels=1000)
    with pytest.raises(ValueError, match="classes in another order .its class .*accuracy would be meaningless"):
        load_model(_config(tmp_path / "sorted", classes=1000))
