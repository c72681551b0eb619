"""A LLaVA whose language model lies on disk: the same answers, with a compressed tower, too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import ttf
from tests.composing import composed
from ttf.models.placement import Placement
from ttf.models.weights import fingerprint
from ttf.tasks.options import pick_placement
from ttf.tasks.run import Run

pytest.importorskip("transformers", reason="needs transformers: pip install 'ttf[hf]'")

import transformers

from ttf.models.llava import llava
from ttf.models.llava_mini import tokenizer

ON_DISK = {
    "model.vision_tower": "cpu",
    "model.multi_modal_projector": "cpu",
    "model.language_model": "disk",
    "lm_head": "cpu",
}
PROMPT = "USER: <image>\n{question} ASSISTANT:"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LLaVA as ``save_pretrained`` writes it."""
    torch.manual_seed(0)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    vision = transformers.CLIPVisionConfig(**small, num_hidden_layers=4, image_size=32, patch_size=8)
    words = tokenizer()
    text = transformers.LlamaConfig(
        **small, num_hidden_layers=2, vocab_size=len(words), pad_token_id=0, bos_token_id=1, eos_token_id=2
    )
    config = transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_index=len(words))
    path = tmp_path_factory.mktemp("llava")
    transformers.LlavaForConditionalGeneration(config).save_pretrained(path)
    words.save_pretrained(path)
    transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(path)
    return path


def _load(folder: Path, placement: Placement | None) -> Any:
    return llava(str(folder), 4, PROMPT, pretrained=True, placement=placement)


def test_answers_from_disk_are_those_from_memory(folder: Path, tmp_path: Path):
    whole, placed = _load(folder, None), _load(folder, Placement(ON_DISK, str(tmp_path)))
    language = placed.model.get_submodule("model.language_model")
    assert all(parameter.is_meta for parameter in language.parameters())
    assert fingerprint(placed) == fingerprint(whole)
    images, asked = torch.randn(2, 3, 32, 32), ["is there a 5 ?", "how many digits are there ?"]
    for options in (None, {"ratio": 0.5, "blocks": [1]}, {"ratio": 0.5, "blocks": [1], "recover": True}):
        found = []
        for model in (whole, placed):
            if options:
                ttf.apply(model, **options)
            with torch.no_grad():
                features, logits = model.features(images), model(images)
            found.append((len(features[0]), model.answer(asked, features), logits))
        assert found[0][:2] == found[1][:2] and torch.allclose(found[0][2], found[1][2], atol=1e-5)
        assert found[1][0] == (8 if options and "recover" not in options else 16)


def test_half_precision_is_that_of_the_placement(folder: Path):
    model = _load(folder, Placement("cpu", dtype=torch.bfloat16))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert len(model.answer(["is there a 5 ?"], model.features(torch.randn(1, 3, 32, 32)))) == 1


PLACES: list[tuple[Any, str | None, str]] = [
    (ON_DISK, None, "puts parts on disk: say where with offload=FOLDER"),
    ("auto", None, ""),
    ("cpu", "somewhere", "offload would have no effect"),
    ({}, None, "device_map names no part"),
    ("fast", None, "device_map puts all on 'fast', which is not available here"),
    ({**ON_DISK, "lm_head": 99}, "x", "puts lm_head on 99, which is not available"),
    ({"": "disk"}, "x", "must put model.vision_tower as a whole on one device that computes, and it is on disk"),
    ({"model": "cpu", "model.vision_tower.encoder": "disk"}, "x", "and it is on cpu, disk"),
    ({"model": "cpu", "lm_head": "disk"}, "x", ""),
]


@pytest.mark.parametrize(("device_map", "offload", "message"), PLACES, ids=str)
def test_places_are_checked_before_anything_is_loaded(device_map: Any, offload: str | None, message: str):
    if not message:
        assert Placement(device_map, offload).options()["device_map"] == device_map
        return
    with pytest.raises(ValueError, match=message):
        Placement(device_map, offload)


SETTINGS = [
    (["offload=x"], "offload would have no effect"),
    (["device_map=auto"], "the speed of a model over several devices is not measured"),
    (["device_map=auto", "device=cpu"], "leave device and checkpoint out"),
    (["device_map=auto", "model=llava_mini"], "from the hub, and llava_mini is none"),
]


@pytest.mark.parametrize(("given", "message"), SETTINGS, ids=str)
def test_settings_that_do_not_go_together(given: list[str], message: str):
    with pytest.raises(ValueError, match=message):
        pick_placement(composed("eval", "task=vqa", "model=llava_1_5_7b", *given))


def test_a_row_of_a_placed_model(folder: Path, tmp_path: Path):
    """The same numbers and the same weights as on one device."""
    task = ["task=vqa", "model=llava_1_5_7b", "task.dataset=scene_questions", f"network.name={folder}", "limit=2"]
    common = [*task, "throughput.batch_size=0", "ratio=0.5", "blocks=[1]", f"paths.cache={tmp_path}/cache"]
    parts = ",".join(f"{name}:{place}" for name, place in ON_DISK.items())
    rows = []
    for given in ([], [f"device_map={{{parts}}}", f"offload={tmp_path}/disk"]):
        run = Run(composed("eval", *common, *given))
        rows.append(run.measure(run.config(), [], common))
    assert rows[0]["metrics"] == rows[1]["metrics"] and rows[0]["id"] == rows[1]["id"]
    assert rows[1]["gmacs"] == pytest.approx(rows[0]["gmacs"]) and rows[1]["metrics"]["tokens"]["value"] == 8
