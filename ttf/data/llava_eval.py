"""The benchmarks of the paper's Table 5 in the layout of LLaVA's evaluation folder (``playground/data/eval``)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ttf.data.questions import Question, Questions
from ttf.errors import MissingError

WORD = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
SPLITS = ("random", "popular", "adversarial")
Asked = Iterator[tuple[str, Question]]
FOLDER = "paths.llava_eval is LLaVA's evaluation folder (eval.zip), with the images beside each benchmark's questions"


def _files(root: Path, names: list[str]) -> list[Path]:
    """The files of a benchmark. Raises ``MissingError``, listing those that are not there."""
    missing = [name for name in names if not (root / name).is_file()]
    if missing:
        raise MissingError(f"no {', '.join(missing)} in {root}: {FOLDER}")
    return [root / name for name in names]


def _lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines. Raises ``ValueError`` naming a line that is none."""
    found = []
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        try:
            found.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number} is not JSON ({error}): get the file again") from error
    return found


def _whole(path: Path) -> Any:
    """A file of JSON. Raises ``ValueError`` where it is none."""
    try:
        return json.loads(path.read_text())
    except (ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"{path} is not JSON ({error}): get the file again") from error


def _field(row: dict[str, Any], name: str, path: Path) -> Any:
    if name not in row:
        raise ValueError(f"{path}: a question without {name!r} (it has {', '.join(row) or 'nothing'})")
    return row[name]


OTHER_COMMIT = (
    "the files of POPE's commit e3e3926 belong together (2910 random questions; later commits have 3000 others)"
)


def _labels(path: Path) -> list[str]:
    """Labels of a split in order: what is not "no" counts as yes."""
    return ["no" if _field(row, "label", path) == "no" else "yes" for row in _lines(path)]


def _pope(root: Path) -> Asked:
    asked, *files = _files(root, ["llava_pope_test.jsonl", *(f"coco/coco_pope_{split}.json" for split in SPLITS)])
    left = {split: _labels(path)[::-1] for split, path in zip(SPLITS, files, strict=True)}
    for row in _lines(asked):
        split = _field(row, "category", asked)
        if split not in left:
            raise ValueError(f"{asked}: a question of an unknown kind {split!r}, known are {', '.join(SPLITS)}")
        if not left[split]:
            raise ValueError(f"{asked} has more questions than coco_pope_{split}.json: {OTHER_COMMIT}")
        number, text = str(_field(row, "question_id", asked)), _field(row, "text", asked)
        yield _field(row, "image", asked), Question(number, text, (left[split].pop(),), "pope", split)
    for split, rest in left.items():
        if rest:
            raise ValueError(
                f"coco_pope_{split}.json has {len(rest)} labels more than {asked} questions: {OTHER_COMMIT}"
            )


def _scienceqa(root: Path) -> Asked:
    names = ["problems.json", "pid_splits.json", "llava_test_CQM-A.json"]
    problems, splits, asked = map(_whole, paths := _files(root, names))
    prompts = {str(row["id"]): row["conversations"][0]["value"] for row in asked}
    for number in map(str, splits["test"]):
        problem = problems.get(number)
        if problem is None or number not in prompts:
            raise ValueError(f"{paths[0] if problem is None else paths[2]} lacks question {number} of the test split")
        if not problem.get("image"):
            continue
        text = prompts[number].replace("<image>", "").strip()
        letter = "ABCDE"[problem["answer"]]
        question = Question(number, f"{text}\n{LETTER}", (letter,), "scienceqa", "image", len(problem["choices"]))
        yield f"{number}/{problem['image']}", question


def _textvqa(root: Path) -> Asked:
    truth, asked = _files(root, ["TextVQA_0.5.1_val.json", "llava_textvqa_val_v051_ocr.jsonl"])
    known = {(row["image_id"], row["question"].lower()): row for row in _field(_whole(truth), "data", truth)}
    seen: dict[tuple[str, str], int] = {}
    for row in _lines(asked):
        image, text = str(_field(row, "question_id", asked)), _field(row, "text", asked)
        key = image, text.split("\n")[0].lower()
        if key not in known:
            raise ValueError(
                f"{asked}: {text.splitlines()[0]!r} about {image} is not among the questions of {truth.name}"
            )
        seen[key] = seen.get(key, 0) + 1
        number = f"{known[key].get('question_id', image)}" + (f"-{seen[key]}" if seen[key] > 1 else "")
        yield _field(row, "image", asked), Question(number, text, tuple(known[key]["answers"]), "textvqa")


def _vqav2(root: Path) -> Asked:
    names = ["v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json"]
    asked, truth = map(_whole, paths := _files(root, names))
    answers = {row["question_id"]: [one["answer"] for one in row["answers"]] for row in truth["annotations"]}
    for row in asked["questions"]:
        number = row["question_id"]
        if number not in answers:
            raise ValueError(f"{paths[1]} has no answers to question {number} of {paths[0].name}")
        question = Question(str(number), f"{row['question']}\n{WORD}", tuple(answers[number]), "vqav2", "val")
        yield f"COCO_val2014_{row['image_id']:012d}.jpg", question


VQAV2_TEST = ["llava_vqav2_mscoco_test-dev2015.jsonl", "llava_vqav2_mscoco_test2015.jsonl"]


def _vqav2_test(root: Path) -> Asked:
    asked, seen = _files(root, VQAV2_TEST)[0], set[str]()
    for row in _lines(asked):
        number, text = str(_field(row, "question_id", asked)), _field(row, "text", asked)
        if number in seen:  # the server knows an answer by its number
            raise ValueError(f"{asked}: question {number} is there twice")
        seen.add(number)
        yield _field(row, "image", asked), Question(number, text, (), "vqav2", "test-dev")


SETS: dict[str, tuple[str, str, Callable[[Path], Asked]]] = {
    "pope": ("pope", "val2014", _pope),
    "scienceqa": ("scienceqa", "images/test", _scienceqa),
    "textvqa": ("textvqa", "train_images", _textvqa),
    "vqav2_val": ("vqav2", "val2014", _vqav2),
    "vqav2_test": ("vqav2", "test2015", _vqav2_test),
}


def llava_eval(root: str | Path, benchmark: str) -> Questions:
    """A benchmark in LLaVA's evaluation folder.

    Args:
        root: the folder, ``playground/data/eval``.
        benchmark: "pope", "scienceqa" (the test questions with an image), "textvqa", "vqav2_val", or "vqav2_test"
            (test-dev, whose answers are the server's).

    Raises:
        ValueError: an unknown benchmark, or files that do not belong together.
        MissingError: files or images that are not there, listed.
    """
    if benchmark not in SETS:
        raise ValueError(f"benchmark must be one of {', '.join(SETS)}, got {benchmark!r}")
    folder, images, read = SETS[benchmark]
    place = Path(root) / folder
    try:
        found = Questions(benchmark, place / images, read(place))
        if benchmark == "vqav2_test":  # the server wants a line for every question of the whole test set
            found.submitted = [int(row["question_id"]) for row in _lines(place / VQAV2_TEST[1])]
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise ValueError(f"the files in {place} are not those of the benchmark ({what}): get them again") from error
    return found
