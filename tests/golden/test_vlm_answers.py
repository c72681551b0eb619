"""Scoring of answers against what the official evaluation codes said, and published answer files."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from ttf.metrics import answers

FOLDER = Path(os.environ.get("TTF_GOLDEN_VLM", Path(__file__).parents[3] / "shared" / "golden" / "vlm"))


@cache
def _read(stem: str) -> Any:
    path = FOLDER / f"{stem}.json"
    if not path.is_file():
        pytest.skip(f"needs the reference data of vision-language models: no {path}")
    return json.loads(path.read_text())


def test_textvqa():
    cases = _read("scoring")["vqa"]
    for case in cases:
        expected = case["textvqa"]
        assert answers.textvqa_normalised(case["prediction"]) == expected["normalised"], case
        assert list(map(answers.textvqa_normalised, case["answers"])) == expected["normalised_answers"], case
        assert answers.textvqa_score(case["prediction"], case["answers"]) == pytest.approx(expected["score"]), case
    mean = sum(answers.textvqa_score(case["prediction"], case["answers"]) for case in cases) / len(cases)
    assert mean == pytest.approx(_read("scoring")["vqa_mean"]["textvqa"])


def test_vqav2():
    cases = _read("scoring")["vqa"]
    for case in cases:
        text, given, expected = case["prediction"], case["answers"], case["vqav2"]
        assert answers.vqa_normalised(text) == expected["normalised"], case
        assert answers.vqav2_score(text, given) == pytest.approx(expected["score"]), case
        assert answers.vqav2_submission_score(text, given) == pytest.approx(expected["score_of_submission"]), case
    mean = sum(answers.vqav2_score(case["prediction"], case["answers"]) for case in cases) / len(cases)
    assert mean == pytest.approx(_read("scoring")["vqa_mean"]["vqav2"])


def test_pope():
    for case in _read("scoring")["pope"]:
        says = [answers.pope_says_yes(text) for text in case["texts"]]
        assert ["yes" if yes else "no" for yes in says] == case["parsed"], case["name"]
        found = answers.pope(says, [label == "yes" for label in case["labels"]])
        assert (found.tp, found.fp, found.tn, found.fn) == (case["TP"], case["FP"], case["TN"], case["FN"])
        for name in ("precision", "recall", "f1", "accuracy", "yes_ratio"):
            if case[name] is not None:  # None: the official code divides by zero
                assert getattr(found, name) == pytest.approx(case[name]), (case["name"], name)


def test_scienceqa():
    golden = _read("scoring")["scienceqa"]
    for case in golden["cases"]:
        letter = answers.scienceqa_letter(case["text"])
        assert letter == (case["parsed"] if case["parsed"] in tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ") else None), case
        choice = answers.scienceqa_choice(case["text"], case["choices"])
        assert (-1 if choice is None else choice) == case["index"]
        assert (choice == case["answer"]) == case["correct"]
    right = [answers.scienceqa_choice(case["text"], case["choices"]) == case["answer"] for case in golden["cases"]]
    with_image = [hit for hit, case in zip(right, golden["cases"], strict=True) if case["image"]]
    summary = golden["summary"]
    assert (sum(right), sum(with_image)) == (summary["correct"], summary["image_correct"])
    assert 100 * sum(with_image) / len(with_image) == pytest.approx(summary["image_accuracy"])


def test_published_answers_to_pope():
    real = _read("real_answers")["pope"]
    scores = []
    for split in real["splits"].values():
        labels, texts = split["labels"], [{"Y": "Yes", "N": "No"}[letter] for letter in split["answers"]]
        found = answers.pope([answers.pope_says_yes(text) for text in texts], [letter == "Y" for letter in labels])
        for name in ("accuracy", "precision", "recall", "f1", "yes_ratio"):
            if name in split:
                assert getattr(found, name) == pytest.approx(split[name], abs=1e-6), name
        scores.append(found.f1)
    assert round(100 * sum(scores) / len(scores), 1) == real["published_mean_f1"] == 85.9


def test_published_answers_to_scienceqa():
    rows = _read("real_answers")["scienceqa"]["rows"]
    hits = [
        (answers.scienceqa_choice(text, options) == "ABCDE".index(answer), image)
        for _, options, answer, image, text in rows
    ]
    with_image = [hit for hit, image in hits if image]
    assert (sum(with_image), len(with_image), len(hits)) == (1445, 2017, 4241)
    assert round(100 * sum(with_image) / len(with_image), 1) == 71.6
