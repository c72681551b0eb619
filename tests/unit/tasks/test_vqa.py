"""Questions about images: data sets on disk, answers, metrics, and a LLaVA of 7B in shapes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import ttf
from ttf.data.llava_eval import llava_eval
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

TEN = ["red"] * 10


def _write(path: Path, content: Any, lines: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, content)) if lines else json.dumps(content))


def _picture(path: Path, size: tuple[int, int] = (8, 6)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (200, 10, 10)).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """LLaVA's evaluation folder in small."""
    asked = [
        {"question_id": n, "image": f"{n % 2}.jpg", "text": f"Is there a dog {n}?", "category": split}
        for n, split in enumerate(("random", "random", "popular", "adversarial"))
    ]
    _write(tmp_path / "pope/llava_pope_test.jsonl", asked, True)
    for split, labels in {"random": ["yes", "no"], "popular": ["no"], "adversarial": ["yes"]}.items():
        _write(tmp_path / f"pope/coco/coco_pope_{split}.json", [{"label": label} for label in labels], True)
    problem = {"choices": ["x", "y"], "answer": 1, "image": "image.png"}
    _write(tmp_path / "scienceqa/problems.json", {"7": problem, "8": {**problem, "image": None}})
    _write(tmp_path / "scienceqa/pid_splits.json", {"test": ["7", "8"]})
    talk = [{"from": "human", "value": "<image>\nWhich?\nA. x\nB. y"}]
    _write(tmp_path / "scienceqa/llava_test_CQM-A.json", [{"id": n, "conversations": talk} for n in ("7", "8")])
    truth = [{"image_id": "i", "question": "What Colour?", "question_id": 3, "answers": TEN}]
    _write(tmp_path / "textvqa/TextVQA_0.5.1_val.json", {"data": truth})
    line = {"question_id": "i", "image": "i.jpg", "text": "What colour?\nReference OCR token: A\nShort."}
    _write(tmp_path / "textvqa/llava_textvqa_val_v051_ocr.jsonl", [line], True)
    own = {"question_id": 5, "image_id": 9, "question": "How many?"}
    _write(tmp_path / "vqav2/v2_OpenEnded_mscoco_val2014_questions.json", {"questions": [own]})
    given = {"question_id": 5, "answers": [{"answer": a} for a in TEN]}
    _write(tmp_path / "vqav2/v2_mscoco_val2014_annotations.json", {"annotations": [given]})
    test = {"question_id": 6, "image": "COCO_test2015_1.jpg", "text": "Why?"}
    _write(tmp_path / "vqav2/llava_vqav2_mscoco_test-dev2015.jsonl", [test], True)
    _write(tmp_path / "vqav2/llava_vqav2_mscoco_test2015.jsonl", [test, {"question_id": 8}], True)
    pictures = ("pope/val2014/0.jpg", "pope/val2014/1.jpg", "scienceqa/images/test/7/image.png")
    more = ("vqav2/val2014/COCO_val2014_000000000009.jpg", "vqav2/test2015/COCO_test2015_1.jpg")
    for name in (*pictures, "textvqa/train_images/i.jpg", *more):
        _picture(tmp_path / name)
    return tmp_path


def test_pope(folder: Path):
    data = llava_eval(folder, "pope")
    assert len(data) == 2 and data.image(1).size == (8, 6)
    asked = [(q.part, q.answers[0]) for i in range(2) for q in data.questions(i)]
    assert asked == [("random", "yes"), ("popular", "no"), ("random", "no"), ("adversarial", "yes")]


def test_scienceqa_has_its_questions_with_an_image(folder: Path):
    data = llava_eval(folder, "scienceqa")
    (question,) = data.questions(0)
    assert len(data) == 1 and question.answers == ("B",) and question.options == 2
    assert question.text.startswith("Which?\nA. x\nB. y\nAnswer with the option's letter")


def test_textvqa_and_vqav2(folder: Path):
    (text,) = llava_eval(folder, "textvqa").questions(0)
    assert text.answers == tuple(TEN) and score("Red.", text) == 1
    (val,) = llava_eval(folder, "vqav2_val").questions(0)
    assert val.text == "How many?\nAnswer the question using a single word or phrase."
    (hidden,) = llava_eval(folder, "vqav2_test").questions(0)
    assert hidden.answers == () and score("red", hidden) != score("red", hidden)  # NaN


def _drop(name: str) -> Callable[[Path], None]:
    return lambda root: (root / name).unlink()


def _append(name: str, row: dict[str, Any]) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        with (root / name).open("a") as file:
            file.write("\n" + json.dumps(row))

    return change


ASKED = "pope/llava_pope_test.jsonl"
TWICE = {"question_id": 2, "image": "0.jpg", "text": "Is there a dog 2?", "category": "popular"}


def _twice(root: Path) -> None:
    _append(ASKED, TWICE)(root)
    _append("pope/coco/coco_pope_popular.json", {"label": "no"})(root)


MISTAKES: list[tuple[str, Callable[[Path], Any], str]] = [
    ("pope", _drop("pope/val2014/1.jpg"), "1 of 2 images are not in .*val2014 \\(1.jpg\\)"),
    ("pope", _drop("pope/coco/coco_pope_random.json"), "no coco/coco_pope_random.json in .*paths.llava_eval"),
    ("pope", _append(ASKED, {**TWICE, "category": "hard"}), "unknown kind 'hard'"),
    ("pope", _append(ASKED, {"category": "random"}), "more questions than coco_pope_random.json"),
    ("pope", _append("pope/coco/coco_pope_random.json", {"label": "no"}), "1 labels more than"),
    ("pope", _twice, "question 2 about 0.jpg is there twice"),
    ("pope", lambda root: (root / ASKED).write_text("{"), "line 1 is not JSON"),
    ("pope", lambda root: (root / ASKED).write_text("{}"), "a question without 'category'"),
    ("scienceqa", _drop("scienceqa/problems.json"), "no problems.json in"),
    ("textvqa", lambda r: _write(r / "textvqa/TextVQA_0.5.1_val.json", {"data": []}), "is not among the questions of"),
    ("mmbench", lambda root: None, "benchmark must be one of pope, scienceqa"),
]


@pytest.mark.parametrize(("benchmark", "change", "message"), MISTAKES, ids=[case[2][:30] for case in MISTAKES])
def test_mistakes_in_files(folder: Path, benchmark: str, change: Callable[[Path], Any], message: str):
    change(folder)
    with pytest.raises(ValueError, match=message):
        llava_eval(folder, benchmark)


def test_an_empty_folder_lists_all_that_is_missing(tmp_path: Path):
    with pytest.raises(MissingError, match="problems.json, pid_splits.json, llava_test_CQM-A.json"):
        llava_eval(tmp_path, "scienceqa")


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


def test_the_file_for_the_server(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    task = QuestionAnswering(data=llava_eval(folder, "vqav2_test"), cache=tmp_path / "cache")
    task._submit({0: Answers(("Two, please",), 5)})
    (path,) = tmp_path.glob("submission-*.json")
    assert json.loads(path.read_text()) == [{"question_id": 6, "answer": "2 please"}, {"question_id": 8, "answer": ""}]
    assert str(path) in capsys.readouterr().err


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
