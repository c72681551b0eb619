"""Questions about images, and data sets of them: images with all their questions, in the order of the files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ttf.data.reading import read_image
from ttf.errors import MissingError

BENCHMARKS = ("pope", "scienceqa", "textvqa", "vqav2")
SHOWN = 4


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        id: its number in the benchmark.
        text: as it stands in the prompt, with the benchmark's instruction.
        answers: what is right: ten answers of people (TextVQA, VQAv2), "yes" or "no" (POPE), a letter (ScienceQA);
            () where the answers are not public.
        benchmark: how it is scored, one of ``BENCHMARKS``.
        part: split or kind within the benchmark.
        options: number of options (ScienceQA).

    Raises:
        ValueError: an unknown benchmark, or an answer that the benchmark does not have.
    """

    id: str
    text: str
    answers: tuple[str, ...]
    benchmark: str
    part: str = ""
    options: int = 0

    def __post_init__(self) -> None:
        if self.benchmark not in BENCHMARKS:
            raise ValueError(f"question {self.id}: {self.benchmark!r} is none of {', '.join(BENCHMARKS)}")
        if self.benchmark == "pope" and (len(self.answers) != 1 or self.answers[0] not in ("yes", "no")):
            raise ValueError(f"question {self.id}: the answer to a question of POPE is yes or no, got {self.answers}")


class Questions:
    """Images with their questions.

    Args:
        name: of the benchmark, for messages and the digest.
        folder: that the images are in.
        asked: pairs of an image's name in the folder and a question, in order; an image may come again.

    Attributes:
        submitted: numbers of the questions that a server wants answers to, where it scores them.

    Raises:
        ValueError: there are no questions, or one is asked twice about the same image.
        MissingError: images that are not there; the message names the first.
    """

    transform: Any = None
    submitted: Sequence[int] = ()

    def __init__(self, name: str, folder: Path, asked: Iterable[tuple[str, Question]]) -> None:
        self.name, self.folder = name, folder
        self.by_image: dict[str, list[Question]] = {}
        for image, question in asked:
            self.by_image.setdefault(image, []).append(question)
        self.names = list(self.by_image)
        if not self.names:
            raise ValueError(f"{name}: no questions in its files")
        _check_once(name, self.by_image)
        self._check_images()

    def _check_images(self) -> None:
        there = {path.name for path in self.folder.iterdir()} if self.folder.is_dir() else set()
        flat = all("/" not in image for image in self.names)
        missing = [n for n in self.names if (n not in there if flat else not (self.folder / n).is_file())]
        if missing:
            shown = ", ".join(missing[:SHOWN]) + (" ..." if len(missing) > SHOWN else "")
            raise MissingError(
                f"{self.name}: {len(missing)} of {len(self.names)} images are not in {self.folder} ({shown}): "
                "unpack the benchmark's images there"
            )

    def __len__(self) -> int:
        return len(self.names)

    def image(self, index: int) -> Image.Image:
        """Image ``index``. Raises ``BadImageError`` where its file cannot be read."""
        path = self.folder / self.names[index]
        return read_image(path)

    def questions(self, index: int) -> Sequence[Question]:
        """The questions about image ``index``."""
        return self.by_image[self.names[index]]

    def digest(self) -> str:
        """Identity of the set: images, questions and answers."""
        found = hashlib.sha256()
        for image, questions in self.by_image.items():
            found.update(json.dumps([image, [(q.id, q.text, q.answers, q.part) for q in questions]]).encode())
        return f"{self.name}-{len(self)}-{found.hexdigest()[:16]}"

    def __getitem__(self, index: int) -> tuple[Image.Image, Sequence[Question]]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.image(index), self.questions(index)


def _check_once(name: str, by_image: dict[str, list[Question]]) -> None:
    for image, questions in by_image.items():
        seen: set[tuple[str, str, str]] = set()
        for one in questions:
            key = (one.id, one.text, one.part)
            if key in seen:
                raise ValueError(f"{name}: question {one.id} about {image} is there twice: remove one of the two lines")
            seen.add(key)
