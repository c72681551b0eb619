"""LLaVA's evaluation folder: four benchmarks on disk, what is missing or wrong in their files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ttf.data.llava_eval import llava_eval
from ttf.errors import MissingError
from ttf.tasks.vqa import Answers, QuestionAnswering, score

TEN = ["red"] * 10


def _write(path: Path, content: Any, lines: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, content)) if lines else json.dumps(content))


VQA, OWN = (
    "vqav2/v2_OpenEnded_mscoco_val2014_questions.json",
    {"question_id": 5, "image_id": 9, "question": "How many?"},
)


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
    _write(tmp_path / VQA, {"questions": [OWN]})
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
    asked = folder / "textvqa/llava_textvqa_val_v051_ocr.jsonl"  # a question may come again
    asked.write_text(f"{asked.read_text()}\n" * 2)
    assert [one.id for one in llava_eval(folder, "textvqa").questions(0)] == ["3", "3-2"]
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


SENT = "vqav2/llava_vqav2_mscoco_test-dev2015.jsonl"
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
    ("scienceqa", _drop("scienceqa/images/test/7/image.png"), "1 of 1 images are not in .*7/image.png"),
    ("scienceqa", lambda r: _write(r / "scienceqa/pid_splits.json", {"test": ["7", "7"]}), "question 7 about .* twice"),
    ("vqav2_val", lambda r: _write(r / VQA, {"questions": [OWN, OWN]}), "question 5 about .* is there twice"),
    (
        "vqav2_test",
        _append(SENT, {"question_id": 6, "image": "0.jpg", "text": "another?"}),
        "question 6 is there twice",
    ),
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


def test_the_file_for_the_server(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    task = QuestionAnswering(data=llava_eval(folder, "vqav2_test"), cache=tmp_path / "cache")
    task._submit({0: Answers(("Two, please",), 5)})
    (path,) = tmp_path.glob("submission-*.json")
    assert json.loads(path.read_text()) == [{"question_id": 6, "answer": "2 please"}, {"question_id": 8, "answer": ""}]
    assert str(path) in capsys.readouterr().err
