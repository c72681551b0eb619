"""Questions about images: answers, metrics, and a LLaVA of 7B in shapes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

import ttf
from ttf.data.questions import Question
from ttf.data.scene_questions import SceneQuestions
from ttf.errors import MissingError
from ttf.metrics import measure
from ttf.metrics.outcomes import stack
from ttf.schedule import RemovePerBlock
from ttf.tasks.vqa import Answers, Journal, Part, QuestionAnswering, costs, outcome, score

pytest.importorskip("transformers", reason="needs transformers: pip install 'ttf[hf]'")

import transformers

from ttf.models import tower_tokens
from ttf.models.llava import PROMPT, Preparation, VisionLanguageModel, check_kind, llava
from ttf.models.llava_mini import llava_mini


def test_questions_of_an_unknown_kind():
    with pytest.raises(ValueError, match="'mmbench' is none of pope, scienceqa"):
        Question("1", "?", ("a",), "mmbench")
    with pytest.raises(ValueError, match="is yes or no, got"):
        Question("1", "?", ("maybe",), "pope")


# answers and metrics

ALL = [
    Question("1", "?", ("yes",), "pope", "random"),
    Question("2", "?", ("no",), "pope", "popular"),
    Question("3", "?", ("B",), "scienceqa", "", 3),
    Question("4", "?", ("two",) * 10, "textvqa"),
    Question("5", "?", ("2",) * 9 + ("3",), "vqav2"),
]


def _measured(*texts: tuple[str, ...]) -> dict[str, float]:
    base = Answers(("Yes", "No", "B", "2", "two"), 144)
    images = [outcome(ALL, Answers(text, 18), base) | {"tower_gmacs": torch.tensor(1.0)} for text in texts]
    images = [image | {"prefill_gmacs": torch.tensor(2.0)} for image in images]
    return {name: value["value"] for name, value in measure("vqa", stack(images)).items()}


def test_metrics_of_right_and_of_empty_answers():
    right = _measured(("Yes", "No.", "B", "two", "2\n"), ("yes", "no", "B. y", "2", "2"))
    assert right["score"] == right["pope_f1"] / 4 + 75 and right["scienceqa"] == right["vqav2"] == 100
    assert right["pope_f1"] == 50  # of the popular questions none is to be answered by yes: F1 0, as official code
    assert right["tokens"] == 18 and 0 < right["agreement"] < 100 and right["yes"] == 50
    empty = _measured(("", "", "", "", ""))
    assert empty["yes"] == 100 and empty["scienceqa"] == empty["textvqa"] == 0  # POPE counts silence as yes


def test_answers_over_several_lines():
    """As the official codes read them: words end at spaces, so that "no" before a line break is none."""
    assert [score(text, ALL[1]) for text in ("no there\nis", "no\nthere", "\nno")] == [1, 0, 0]
    assert [score(text, ALL[2]) for text in ("B", "B.\ny", "A\nB")] == [1, 0, 0]
    assert score("two\n", ALL[3]) == score("\ttwo", ALL[3]) == 1 and score("2\n", ALL[4]) == 1


def test_an_image_without_questions_changes_nothing():
    said, none = Answers(("Yes", "No", "B", "2", "two"), 144), Answers((), 144)
    costs = {name: torch.tensor(1.0) for name in ("tower_gmacs", "prefill_gmacs")}
    found = [outcome(ALL, said, said) | costs, outcome([], none, none) | costs]
    assert {n: v["value"] for n, v in measure("vqa", stack(found)).items()} == {
        n: v["value"] for n, v in measure("vqa", stack(found[:1])).items()
    }


def test_without_public_answers_there_is_no_score():
    questions = [Question("1", "?", (), "vqav2", "test-dev")]
    said = Answers(("two",), 5)
    found = outcome(questions, said, said) | {name: torch.tensor(1.0) for name in ("tower_gmacs", "prefill_gmacs")}
    values = QuestionAnswering(SceneQuestions("test", 1)).metrics(stack([found]))
    assert "score" not in values and values["agreement"]["value"] == 100


def test_a_killed_run_goes_on(tmp_path: Path):
    journal = Journal(tmp_path, "x")
    journal.add({3: Answers(("a", "line\nbreak"), 5)}, lambda _: ALL[:2])
    with (tmp_path / "answers-x.jsonl").open("a") as file:
        file.write('{"image": 4, "tok')
    assert Journal(tmp_path, "x").known == {3: Answers(("a", "line\nbreak"), 5)}
    assert not Journal(tmp_path, "y").known


# models


@pytest.fixture(scope="module")
def model() -> VisionLanguageModel:
    torch.manual_seed(0)
    return llava_mini(width=32, depth=2)


def test_an_image_of_one_pixel(model: VisionLanguageModel):
    tokens = model.features(model.preparation(Image.new("L", (1, 1), 7)).unsqueeze(0))
    assert len(model.answer(["is there a 5 ?"], tokens)) == 1


def test_images_are_padded_with_the_mean_colour():
    square = Preparation(8, (0.48145466, 0.4578275, 0.40821073), (1, 1, 1)).square(
        Image.new("RGB", (4, 2), (255, 0, 0))
    )
    assert (
        square.size == (4, 4) and square.getpixel((0, 0)) == (122, 116, 104) and square.getpixel((0, 1)) == (255, 0, 0)
    )


def test_left_padding_changes_no_answer(model: VisionLanguageModel):
    images = torch.randn(3, 3, 96, 96)
    asked = ["is there a 5 ?", "which digit is the largest ? A. 1 B. 2 C. 3", "read the digits from left to right"]
    with ttf.applied(model, "prumerge", plus=True, outliers=True, ratio=0.9, blocks=[11]):
        features = model.features(images)
    prompts = [model.spliced(q, f) for q, f in zip(asked, features, strict=True)]
    embeds, mask = model.padded(prompts)
    with torch.no_grad():
        batch = model.model(inputs_embeds=embeds, attention_mask=mask).logits[:, -1]
        alone = torch.cat([model.model(inputs_embeds=p.unsqueeze(0)).logits[:, -1] for p in prompts])
    assert torch.allclose(batch, alone, atol=1e-4)
    assert model.answer(asked, features) == [model.answer([q], [f])[0] for q, f in zip(asked, features, strict=True)]


def test_tokens_in_the_order_of_the_image(model: VisionLanguageModel):
    """Both orders hold the same tokens, and raster puts them by the patch that they grew from."""
    images = torch.randn(2, 3, 96, 96)
    with torch.no_grad(), ttf.applied(model, "tome", schedule=RemovePerBlock(8)):
        raster, official = (tower_tokens.selected(model.model, images, order) for order in tower_tokens.ORDERS)
        layers = [layer for layer in ttf.trace(model, images) if layer.block < 11]
    for image in range(2):
        order = layers[-1].origin[image, 1:].argsort()
        assert torch.equal(raster[image], official[image][order]) and not torch.equal(raster[image], official[image])


def test_a_reduction_behind_the_tower_takes_the_features(model: VisionLanguageModel):
    """Every second token of what LLaVA reads, and not of the last layer, which nobody reads."""
    images = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        whole = tower_tokens.selected(model.model, images)
        with ttf.applied(model, "uniform_stride", ratio=0.5, blocks=[11]):
            short = tower_tokens.selected(model.model, images)
        with ttf.applied(model, "uniform_stride", ratio=0.5, blocks=[11], recover=True):
            dense = tower_tokens.selected(model.model, images)
    assert len(short[0]) == 72 and len(dense[0]) == 144
    assert all((row == whole[0]).all(1).any() for row in short[0])


def test_the_task_without_hydra(model: VisionLanguageModel):
    task = QuestionAnswering(data=SceneQuestions("test", 2), model=model)
    whole, short = task.evaluate(), task.evaluate(ratio=0.5)
    assert whole["agreement"]["value"] == 100 and short["tokens"]["value"] == 18 and whole["tokens"]["value"] == 144
    assert short["tower_gmacs"]["value"] < whole["tower_gmacs"]["value"]


def test_other_models_are_refused(model: VisionLanguageModel):
    with pytest.raises(ValueError, match="needs a vision-language model, and this is a Linear"):
        QuestionAnswering(data=SceneQuestions("test", 1), model=torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="llava_next, which this task does not take: .*grids"):
        check_kind("x", transformers.LlavaNextConfig())
    with pytest.raises(ValueError, match="is a clip and no LLaVA"):
        check_kind("x", transformers.CLIPConfig())
    with pytest.raises(MissingError, match="nobody/llava is not on this machine"):
        llava("nobody/llava", pretrained=True)
    with pytest.raises(ValueError, match="order must be raster or official"):
        VisionLanguageModel(model.model, None, model.preparation, PROMPT, 1, order="random")
    with pytest.raises(ValueError, match="the prompt must have"):
        VisionLanguageModel(model.model, None, model.preparation, "no place", 1)


def test_a_tower_without_a_class_token():
    vision = transformers.SiglipVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=2, image_size=32, patch_size=8
    )
    text = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
    )
    config = transformers.LlavaConfig(vision_config=vision, text_config=text, vision_feature_select_strategy="full")
    own = transformers.LlavaForConditionalGeneration._from_config(config).eval()
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert len(tower_tokens.selected(own, images)[0]) == 16
        with ttf.applied(own, ratio=0.5, score_rows="all", blocks=[1]):
            assert len(tower_tokens.selected(own, images)[0]) == 8


def test_costs_of_7b_in_shapes():
    """Tower of 24 layers, and prefill of 143 + 64 tokens, as calculated by hand from the sizes of the layers."""
    with torch.device("meta"):
        big = llava("llava-hf/llava-1.5-7b-hf")
    images = torch.zeros(1, 3, 336, 336, device="meta")
    whole = ttf.measure.gmacs(Part(big, big.selected), images.shape, images)
    assert whole == pytest.approx(191.0, abs=0.05)
    with ttf.applied(big, ratio=0.63):
        assert len(big.selected(images)[0]) == 143
        short = costs(big, images)
    assert short["tower_gmacs"] == pytest.approx(109.2, abs=0.4)
    assert short["prefill_gmacs"] == pytest.approx(1350, rel=5e-3)


def test_names_of_weights_are_those_of_every_version(model: VisionLanguageModel):
    """Versions of transformers nest the tower or do not; files of one fit the other."""
    state = model.state_dict()
    assert "model.model.vision_tower.embeddings.class_embedding" in state
    assert not any("vision_tower.vision_model" in name for name in state)
    other = llava_mini(width=32, depth=2)
    other.load_state_dict(state)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in state.items())
    tower = model.model.get_submodule("model.vision_tower")
    if hasattr(tower, "vision_model"):
        return
    nested = torch.nn.Module()  # as versions below 5.5 have it
    nested.vision_model = tower
    own = VisionLanguageModel(torch.nn.Module(), model.tokenizer, model.preparation, model.prompt, 4)
    own.model.model = torch.nn.Module()
    own.model.model.vision_tower = nested
    towers = {name: value for name, value in state.items() if "vision_tower" in name}
    assert {*own.state_dict()} == {*towers}
    own.load_state_dict({name: torch.zeros_like(value) for name, value in towers.items()})
    assert not any(value.any() for value in own.state_dict().values())
    model.load_state_dict(state)
