"""Questions about scenes of digits that lie apart: one kind or more for each benchmark of the paper's Table 5.

POPE: "is there a 5 ?"; VQAv2: how many digits, which one is the largest, where it is; TextVQA: read them from left to
right; ScienceQA: the letter of an option. Questions whose answer is not clear (ties of a few pixels) are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from ttf.data.questions import Question
from ttf.data.scenes import NUM_CLASSES, SIDE, Scene, check_set, compose_apart, digit_split

QUESTIONS = 1  # raise when questions change
CLEAR = 4.0  # pixels between two digits from left to right
OFF_CENTRE = 5.0  # pixels of the largest digit's centre from the middle lines
SPLITS = ("random", "popular", "adversarial")
KINDS = ("exist", "count", "largest", "where", "read", "choice")
BENCHMARKS = {
    "exist": "pope",
    "count": "vqav2",
    "largest": "vqav2",
    "where": "vqav2",
    "read": "textvqa",
    "choice": "scienceqa",
}
Drawn = tuple[str, str] | None  # question and answer; None where it is not clear


@dataclass(frozen=True)
class Digits:
    """What is in a scene: digits (K,), the centres (K, 2) and heights (K,) of their boxes in pixels."""

    digits: list[int]
    centres: np.ndarray
    heights: np.ndarray

    @classmethod
    def of(cls, scene: Scene) -> Digits:
        """From the boxes of a scene."""
        x0, y0, x1, y1 = scene.boxes.T
        centres = np.stack(((x0 + x1) / 2, (y0 + y1) / 2), axis=1)
        return cls(scene.box_labels.tolist(), centres, y1 - y0)

    @property
    def largest(self) -> int:
        """The one that was painted last: nearest, so largest."""
        return len(self.digits) - 1


@cache
def _look_alikes() -> np.ndarray:
    """For each digit the others, the most similar mean image first, (10, 9)."""
    images, labels = digit_split("train")
    means = np.stack([images[labels == digit].mean(0).ravel() for digit in range(NUM_CLASSES)])
    order = np.argsort(-np.corrcoef(means), axis=1, kind="stable")
    return order[:, 1:]


def _negative(things: Digits, split: str, rng: np.random.Generator) -> int:
    """A digit that is not there: any one; one of the three most frequent digits; one that looks like one that is."""
    absent = [digit for digit in range(NUM_CLASSES) if digit not in things.digits]
    if split == "popular":
        _, labels = digit_split("train")
        frequent = [d for d in np.argsort(-np.bincount(labels), kind="stable").tolist() if d in absent]
        absent = frequent[:3]
    if split == "adversarial":
        likes = [d for present in things.digits for d in _look_alikes()[present][:2].tolist() if d in absent]
        absent = likes or absent
    return int(rng.choice(absent))


def _exist(things: Digits, rng: np.random.Generator, split: str | None = None) -> Drawn:
    yes, split = bool(rng.integers(2)), split or SPLITS[rng.integers(len(SPLITS))]
    digit = int(rng.choice(things.digits)) if yes else _negative(things, split, rng)
    return f"is there a {digit} ?", "yes" if yes else "no"


def _count(things: Digits, rng: np.random.Generator) -> Drawn:
    return "how many digits are there ?", str(len(things.digits))


def _largest(things: Digits, rng: np.random.Generator) -> Drawn:
    return "which digit is the largest ?", str(things.digits[things.largest])


def _where(things: Digits, rng: np.random.Generator) -> Drawn:
    x, y = things.centres[things.largest] - SIDE / 2
    if min(abs(x), abs(y)) < OFF_CENTRE:
        return None
    return "where is the largest digit ?", f"{'top' if y < 0 else 'bottom'} {'left' if x < 0 else 'right'}"


def _read(things: Digits, rng: np.random.Generator) -> Drawn:
    order = np.argsort(things.centres[:, 0], kind="stable")
    if np.diff(things.centres[order, 0]).min(initial=CLEAR) < CLEAR:
        return None
    return "read the digits from left to right", " ".join(str(things.digits[i]) for i in order)


def _choice(things: Digits, rng: np.random.Generator) -> Drawn:
    right = things.digits[things.largest]
    others = [digit for digit in range(NUM_CLASSES) if digit != right]
    weights = np.array([3.0 if digit in things.digits else 1.0 for digit in others])
    options = [right, *rng.choice(others, 2, replace=False, p=weights / weights.sum()).tolist()]
    order = rng.permutation(3).tolist()
    listed = " ".join(f"{letter}. {options[place]}" for letter, place in zip("ABC", order, strict=True))
    return f"which digit is the largest ? {listed}", "ABC"[order.index(0)]


ASK: dict[str, Callable[..., Drawn]] = {
    "exist": _exist,
    "count": _count,
    "largest": _largest,
    "where": _where,
    "read": _read,
    "choice": _choice,
}


def ask(things: Digits, kind: str, rng: np.random.Generator) -> Drawn:
    """A question of a kind about a scene, and its answer; None where the answer is not clear."""
    return ASK[kind](things, rng)


def _question(scene: int, number: int, kind: str, drawn: tuple[str, str], split: str = "") -> Question:
    benchmark, (text, answer) = BENCHMARKS[kind], drawn
    options = 3 if benchmark == "scienceqa" else 0
    people = 10 if benchmark in ("vqav2", "textvqa") else 1
    return Question(f"{scene}-{number}", text, (answer,) * people, benchmark, split or kind, options)


class SceneQuestions:
    """Scenes with all their questions: an existence question a split of POPE, and one of each other kind.

    Args:
        split: "train" or "test", of disjoint digits.
        length: number of scenes.
        seed: of the scenes and of the questions.
        kinds: only these.

    Raises:
        ValueError: a kind that does not exist.
    """

    transform: Any = None

    def __init__(self, split: str, length: int, seed: int = 0, kinds: Sequence[str] = KINDS) -> None:
        if unknown := {*kinds} - {*KINDS}:
            raise ValueError(f"no kind of question {', '.join(sorted(unknown))}: choose among {', '.join(KINDS)}")
        check_set(length, seed)
        self.split, self.length, self.seed, self.kinds = split, length, seed, tuple(kinds)

    def __len__(self) -> int:
        return self.length

    def image(self, index: int) -> Image.Image:
        """Scene ``index`` as a picture."""
        return Image.fromarray(compose_apart(self.seed, index, self.split).image)

    def digest(self) -> str:
        """Identity of the set."""
        only = "" if {*self.kinds} == {*KINDS} else "-" + "-".join(kind for kind in KINDS if kind in self.kinds)
        return f"scene-questions-{QUESTIONS}-{self.split}-{self.seed}-{self.length}{only}"

    def questions(self, index: int) -> list[Question]:
        """The questions about scene ``index``."""
        things = Digits.of(compose_apart(self.seed, index, self.split))
        rng = np.random.default_rng((self.seed, index, len(self.split), QUESTIONS))
        drawn: list[tuple[str, str, Drawn]] = [("exist", split, _exist(things, rng, split)) for split in SPLITS]
        drawn += [(kind, "", ask(things, kind, rng)) for kind in KINDS[1:]]
        asked = (one for one in drawn if one[0] in self.kinds)
        clear: Sequence[Any] = [(kind, split, pair) for kind, split, pair in asked if pair is not None]
        return [_question(index, n, kind, pair, split) for n, (kind, split, pair) in enumerate(clear)]

    def __getitem__(self, index: int) -> tuple[Image.Image, list[Question]]:
        if not 0 <= index < self.length:
            raise IndexError(index)
        return self.image(index), self.questions(index)
