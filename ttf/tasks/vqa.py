"""Questions about images, answered by a vision-language model whose tower is compressed.

An image with all its questions is the unit. Answers are written as they come, so a run that was killed goes on.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import ttf
from ttf import processes
from ttf.core.plan import Plan
from ttf.data.files import append_lines, atomic_write
from ttf.data.questions import Question
from ttf.data.reading import BadImageError
from ttf.data.subset import readable
from ttf.metrics import answers, named
from ttf.metrics.outcomes import pieces, stack
from ttf.metrics.vqa import BENCHMARKS, SPLITS
from ttf.results.kept import is_sealed, made_anew, sealed
from ttf.results.store import Row, signature
from ttf.tasks.base import Bar, Compression, Outcomes, Task

UNSCORED = ("agreement", "tokens", "tower_gmacs", "prefill_gmacs")  # metrics that need no right answer
COUNTED_IMAGES = 8  # where the number of tokens depends on the image, GMACs are a mean over so many


@dataclass(frozen=True)
class Answers:
    """What was said about one image.

    Attributes:
        texts: the answers, in the order of its questions.
        tokens: how many tokens of the image the language model read.
    """

    texts: tuple[str, ...]
    tokens: int


def _letter(question: Question) -> int:
    return answers.OPTIONS.index(question.answers[0])


SCORES: dict[str, Callable[[str, Question], float]] = {
    "pope": lambda text, q: float(answers.pope_says_yes(text) == (q.answers[0] == "yes")),
    "scienceqa": lambda text, q: float(answers.scienceqa_choice(text, q.options) == _letter(q)),
    "textvqa": lambda text, q: answers.textvqa_score(text, q.answers),
    "vqav2": lambda text, q: answers.vqav2_submission_score(text, q.answers),
}


def score(text: str, question: Question) -> float:
    """The official score of an answer, in [0, 1]; NaN where the right answers are not public."""
    return SCORES[question.benchmark](text, question) if question.answers else float("nan")


def outcome(questions: Sequence[Question], ours: Answers, base: Answers) -> dict[str, Tensor]:
    """What is measured of one image, see ``ttf.metrics.vqa``; (Q,) each but for tokens."""
    pope = [q.benchmark == "pope" for q in questions]
    pairs = list(zip(questions, pope, ours.texts, strict=True))
    return {
        "score": torch.tensor([score(text, q) for q, _, text in pairs]),
        "benchmark": torch.tensor([BENCHMARKS.index(q.benchmark) for q in questions], dtype=torch.uint8),
        "split": torch.tensor([SPLITS.index(q.part) if is_pope else 0 for q, is_pope, _ in pairs], dtype=torch.uint8),
        "yes": torch.tensor([is_pope and answers.pope_says_yes(text) for _, is_pope, text in pairs], dtype=torch.bool),
        "truth": torch.tensor([is_pope and q.answers[0] == "yes" for q, is_pope, _ in pairs], dtype=torch.bool),
        "same": torch.tensor([a == b for a, b in zip(ours.texts, base.texts, strict=True)], dtype=torch.bool),
        "tokens": torch.tensor(float(ours.tokens)),
    }


class Journal:
    """Answers on disk, a line of JSON an image, appended as they come; a line that was cut off is asked again.

    Args:
        folder: where files are; None: nothing is kept.
        name: of the run.
    """

    def __init__(self, folder: Path | None, name: str) -> None:
        part = f"-{processes.local()}" if processes.count() > 1 else ""
        self.path = None if folder is None else folder / f"answers-{name}{part}.jsonl"
        self.known: dict[int, Answers] = {}
        for file in sorted(folder.glob(f"answers-{name}*.jsonl")) if folder is not None else []:
            self.known |= dict(_lines(file))

    def add(self, found: dict[int, Answers], questions: Callable[[int], Sequence[Question]]) -> None:
        """Take on answers by number of the image."""
        self.known |= found
        if self.path is None:
            return
        lines = []
        for image, said in found.items():
            pairs = zip(questions(image), said.texts, strict=True)
            asked = [{"id": q.id, "question": q.text, "answer": text} for q, text in pairs]
            lines.append(json.dumps(sealed({"image": image, "tokens": said.tokens, "answers": asked})))
        append_lines(self.path, lines)


def _lines(file: Path) -> Iterator[tuple[int, Answers]]:
    for number, line in enumerate(file.read_text(errors="replace").splitlines(), 1):
        try:
            row = json.loads(line)
            if not is_sealed(row):
                raise ValueError("changed")
            answer = Answers(tuple(one["answer"] for one in row["answers"]), int(row["tokens"]))
            yield int(row["image"]), answer
        except (ValueError, TypeError, KeyError, RecursionError):  # changed, or cut off when the run was killed
            made_anew(file, f"line {number} was cut off or changed: asked again")


def _described(plan: Plan | None) -> str:
    """What answers depend on beside model and data."""
    return "" if plan is None else repr((plan.method, plan.schedule, plan.recovery))


class Part(nn.Module):
    """A part of a model as a module from images, to count its arithmetic."""

    def __init__(self, model: nn.Module, run: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.model, self.run = model, run

    def forward(self, images: Tensor) -> Any:
        return self.run(images)


class QuestionAnswering(Task):
    """Benchmarks of questions about images: POPE, ScienceQA, TextVQA, VQAv2, or all of them on embedded scenes.

    Args:
        data: images with questions, see ``ttf.data.questions.Questions``.
        model: a ``ttf.models.llava.VisionLanguageModel``.
        order: of the tokens that the language model reads where there are fewer of them: "raster" or "official".
        **options: see ``Task``; ``batch_size`` images go through the tower together, and as many questions.
    """

    name = "vqa"

    def __init__(self, data: Any, model: nn.Module | None = None, *, order: str = "raster", **options: Any) -> None:
        self.order = order
        super().__init__(data, model, **options)
        if self.workers:
            raise ValueError(f"the process that answers reads images, too: leave workers={self.workers} out")

    def adopt(self, model: nn.Module) -> Row:
        """See ``Task.adopt``."""
        from ttf.models.llava import VisionLanguageModel  # transformers: not for every evaluation

        if not isinstance(model, VisionLanguageModel):
            raise ValueError(f"task vqa needs a vision-language model, and this is a {type(model).__name__}")
        model.order, self.input_size, self.preparation = self.order, model.input_size, model.preparation
        self.how = {**asdict(model.preparation), "pad": "square", "prompt": model.prompt}
        return self.how

    def _image(self, position: int) -> Any:
        return self.set.image(self.data.indices[position])

    def _questions(self, index: int) -> Sequence[Question]:
        data: Any = self.set
        return data.questions(index)

    def images(self, positions: Sequence[int]) -> Tensor:
        """See ``Task.images``."""
        return torch.stack([self.preparation(self._image(p)) for p in positions if p < len(self.data)])

    def _read(self, indices: Sequence[int], model: Any) -> tuple[list[int], Tensor | None, list[str]]:
        """The readable images of some numbers, and the names of the others."""
        good, tensors, bad = [], [], []
        for index in indices:
            try:
                tensors.append(model.preparation(self.set.image(index)))
                good.append(index)
            except BadImageError as error:
                bad.append(readable(error, self.on_bad_image).name)
        return good, torch.stack(tensors) if tensors else None, bad

    def _batch(self, model: Any, indices: Sequence[int], images: Tensor) -> dict[int, Answers]:
        with torch.no_grad():
            features = model.features(images)
        asked = [(q.text, part) for i, part in zip(indices, features, strict=True) for q in self._questions(i)]
        said: list[str] = []
        for first in range(0, len(asked), self.batch_size):
            texts, parts = zip(*asked[first : first + self.batch_size], strict=True)
            said += model.answer(texts, parts)
        found, place = {}, 0
        for index, part in zip(indices, features, strict=True):
            count = len(self._questions(index))
            found[index], place = Answers(tuple(said[place : place + count]), len(part)), place + count
        return found

    def _answers(self, model: Any, baseline: Row | None, label: str) -> tuple[dict[int, Answers], list[str]]:
        """Answers to all questions by number of the image, and names of images that cannot be read."""
        plan = ttf.plan(model)
        how = {"plan": _described(plan), "order": self.order if plan else "", "device": _device(model)}
        own = {**(baseline or {}), **how, "preparation": self.how}
        journal = Journal(self.cache if baseline is not None else None, signature(own))
        share = [index for _, index in processes.mine(self.data.indices)]
        bad: list[str] = []
        with Bar(label, len(share)) as bar:
            missing = [index for index in share if index not in journal.known]
            bar.advance(len(share) - len(missing))
            for first in range(0, len(missing), self.batch_size):
                chunk = missing[first : first + self.batch_size]
                good, images, unread = self._read(chunk, model)
                bad += unread
                if images is not None:
                    journal.add(self._batch(model, good, images), self._questions)
                bar.advance(len(chunk))
        places = {index: place for place, index in enumerate(self.data.indices)}
        every = processes.together([(places[i], (i, journal.known[i])) for i in share if i in journal.known])
        unreadable = processes.together([(processes.local(), bad)])
        return dict(every), [name for part in unreadable for name in part]

    def outcomes(self, model: nn.Module, compression: Compression | None, baseline: Row | None, label: str) -> Outcomes:
        """See ``Task.outcomes``."""
        base, bad = self._answers(model, baseline, f"{label}, uncompressed" if compression else label)
        ours, costs = base, None
        if compression is not None:
            with compression():
                ours, _ = self._answers(model, baseline, label)
                costs = self._costs(model)
        costs = costs or self._costs(model)
        self._submit(ours)
        order = [index for index in self.data.indices if index in ours]
        if not order:
            raise ValueError(f"not a single image could be read: {', '.join(bad[:4])}")
        return Outcomes(stack([outcome(self._questions(i), ours[i], base[i]) | costs for i in order]), bad)

    def metrics(self, images: dict[str, Tensor]) -> dict[str, dict[str, Any]]:
        """See ``Task.metrics``; of questions whose right answers are not public what can be known without them."""
        if not all(bool(part.isnan().all()) for part in pieces(images, "score")):
            return super().metrics(images)
        return {name: named(self.name, name).estimate(images).plain() for name in UNSCORED}

    def timed(self, model: nn.Module) -> dict[str, nn.Module]:
        """See ``Task.timed``: the tower, and a whole answer to the first question; the model itself is a prefill."""
        own: Any = model
        asked = self._questions(self.data.indices[0])[0].text

        def answer(images: Tensor) -> list[str]:
            return own.answer([asked] * len(images), own.features(images))

        return {"tower": Part(model, own.selected), "answer": Part(model, answer)}

    def _submit(self, said: Mapping[int, Answers]) -> None:
        """The file for the server that scores a benchmark without public answers, named by its content."""
        wanted = getattr(self.set, "submitted", ())
        if not wanted or self.cache is None or not processes.is_main():
            return
        pairs = (zip(self._questions(index), one.texts, strict=True) for index, one in said.items())
        texts = {int(q.id): answers.textvqa_normalised(text) for pair in pairs for q, text in pair}
        rows = [{"question_id": number, "answer": texts.get(number, "")} for number in wanted]
        path = self.cache.parent / f"submission-{signature({'rows': rows})}.json"
        atomic_write(path, lambda temporary: temporary.write_text(json.dumps(rows)))
        print(f"for the server: {path} ({len(texts)} answers, {len(rows)} questions)", file=sys.stderr)

    def _costs(self, model: Any) -> dict[str, Tensor]:
        """GMACs of the tower, and of the language model's prefill."""
        plan = ttf.plan(model)
        positions = range(COUNTED_IMAGES if plan is not None and plan.method.adaptive else 1)
        images = [model.preparation(self._image(p)).unsqueeze(0) for p in positions if p < len(self.data)]
        counted = [costs(model, image) for image in images]
        return {name: torch.tensor(_mean([one[name] for one in counted])) for name in counted[0]}


def costs(model: Any, images: Tensor) -> dict[str, float]:
    """GMACs of a vision-language model's parts: its tower, and the prefill of its language model.

    Args:
        model: a ``VisionLanguageModel``, compressed or not; on the meta device, too.
        images: (B, 3, S, S), prepared.
    """
    tower, seen, whole = (
        ttf.measure.gmacs(part, images.shape, images)
        for part in (Part(model, model.selected), Part(model, model.features), model)
    )
    return {"tower_gmacs": tower, "prefill_gmacs": whole - seen}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _device(model: nn.Module) -> str:
    return next(model.parameters()).device.type
