"""Many questions about one image behind one copy of its tokens: what a language model is trained on.

A question sees the image and itself alone, so the answers are those of separate prompts. In training the positions of
an image's tokens are squeezed into a random number of places, and questions begin behind them: a language model that
had read nothing but whole images would know a question's words by their position, and fail behind a shorter image.
Shapes: T ids of an item (a fixed number), n patches of the image, C channels of the tower.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ttf.data.scene_questions import KINDS, Digits, SceneQuestions, ask
from ttf.data.scenes import compose_apart

IGNORED = -100
AT_ONCE = 16  # images that the tower reads together
FEWEST = 8  # places that the tokens of an image are squeezed into
EXIST = 0  # of KINDS: its questions are of the splits of POPE
Stage = Mapping[str, Any]


class Reader(Protocol):
    """What a vision-language model does before its language model."""

    def tokens(self, images: Sequence[Image.Image]) -> Sequence[Tensor]:
        """What the tower sees of each image, (n, C)."""

    def pieces(self, question: str) -> tuple[Tensor, Tensor]:
        """Ids before and behind the image."""

    def answer_ids(self, answer: str) -> Tensor:
        """Ids of an answer with the end."""


class Labelled(NamedTuple):
    """An image with the labels of its patches (n,), ``IGNORED`` where there is none, and what is asked about."""

    image: Image.Image
    labels: Tensor
    things: Any


class _Seen(NamedTuple):
    """What is kept of an image: what the tower sees of it, the labels of its patches, and what is asked about."""

    tokens: Tensor
    labels: Tensor
    things: Any


class Pack:
    """Ids of questions one after the other, as long as they fit in ``room``."""

    def __init__(self, before: Tensor, room: int) -> None:
        self.ids, self.room, self.count = before.tolist(), room, 0
        self.start = len(self.ids)
        self.labels, self.kinds = [IGNORED] * self.start, [-1] * self.start
        self.positions, self.segments = list(range(self.start)), [0] * self.start

    def add(self, behind: Tensor, answer: Tensor, kind: int, places: int) -> bool:
        """Take on a question, ``places`` behind the start, and its answer; False where there is no room."""
        ids = [*behind.tolist(), *answer.tolist()]
        if len(ids) - 1 > self.room:
            return False
        self.room -= len(ids) - 1
        self.count += 1
        asked = len(behind) - 1  # the last word of the prompt predicts the first of the answer
        self.ids += ids[:-1]
        self.labels += [*[IGNORED] * asked, *ids[asked + 1 :]]
        self.kinds += [*[-1] * asked, *[kind] * len(answer)]
        self.positions += range(self.start + places, self.start + places + len(ids) - 1)
        self.segments += [self.count] * (len(ids) - 1)
        return True

    def tensors(self) -> tuple[Tensor, ...]:
        """ids, labels, kinds, positions, segments: (T,) each; what is left of the room is a segment of its own."""
        rows = ((self.ids, 0), (self.labels, IGNORED), (self.kinds, -1), (self.positions, 0), (self.segments, -1))
        return tuple(torch.tensor([*row, *[fill] * self.room]) for row, fill in rows)


class Packs(Dataset[tuple[Tensor, ...]], ABC):
    """Items (tokens (n, C), labels of patches (n,), ids, labels, kinds, positions, segments (T,) each).

    Args:
        length: number of items.
        images: how many different images; what the tower sees of each is kept in memory.
        room: ids of all questions of an item.
        transform: the model's ``Reader``.
    """

    kinds: ClassVar[tuple[str, ...]]  # of questions, each a column of the training's log

    def __init__(self, length: int, images: int, room: int, transform: Reader | None) -> None:
        self.length, self.images, self.room, self.transform = length, images, room, transform
        self._seen = dict[int, _Seen]()

    @abstractmethod
    def labelled(self, index: int) -> Labelled:
        """Image ``index``."""

    @abstractmethod
    def ask(self, pack: Pack, item: int, seen: Any, patches: int) -> None:
        """Put questions about ``seen.things`` into the pack of an item."""

    def __len__(self) -> int:
        return self.length

    @property
    def reader(self) -> Reader:
        assert self.transform is not None
        return self.transform

    def _image(self, index: int) -> _Seen:
        """An image; those that come next are made along with it, since the tower reads several at once much faster."""
        if index not in self._seen:
            places = [place for place in range(index, min(index + AT_ONCE, self.images)) if place not in self._seen]
            made = [self.labelled(place) for place in places]
            tokens = self.reader.tokens([one.image for one in made])
            for place, one, seen in zip(places, made, tokens, strict=True):
                self._seen[place] = _Seen(seen.half(), one.labels, one.things)
        return self._seen[index]

    def add(self, pack: Pack, text: str, answer: str, kind: int, places: int) -> bool:
        """Put a question into a pack, ``places`` behind its start; False where there is no room."""
        return pack.add(self.reader.pieces(text)[1], self.reader.answer_ids(answer), kind, places)

    def __getitem__(self, item: int) -> tuple[Tensor, ...]:
        if not 0 <= item < self.length:
            raise IndexError(item)
        seen = self._image(item % self.images)
        pack = Pack(self.reader.pieces("")[0], self.room)
        self.ask(pack, item, seen, len(seen.tokens))
        return seen.tokens.float(), seen.labels, *pack.tensors()


def drawn_places(rng: np.random.Generator, patches: int) -> int:
    """How many places the tokens of an image are squeezed into, in training."""
    return int(rng.integers(min(FEWEST, patches), patches + 1))


def item_generator() -> np.random.Generator:
    """Draws of an item, from the global generator, which the training seeds by (epoch, item)."""
    return np.random.default_rng(np.random.randint(2**31))


class PackedQuestions(Packs):
    """Questions about scenes of digits.

    Training items draw their questions anew every time a scene comes; test items have those of ``SceneQuestions``.

    Args:
        split: "train" or "test".
        length: number of items.
        seed: of the scenes.
        scenes: how many different scenes; None: as many as items.
        room: ids of all questions of an item.
        patch: side of a patch in pixels.
        curriculum: stages, each with ``until`` (share of the items) and ``kinds`` (weights of the kinds of questions).
        transform: the model's ``Reader``.

    Raises:
        ValueError: a stage with a kind that does not exist, or the last one ends before 1.
    """

    kinds = KINDS

    def __init__(
        self,
        split: str,
        length: int,
        seed: int = 0,
        scenes: int | None = None,
        room: int = 160,
        patch: int = 8,
        curriculum: Sequence[Stage] = (),
        transform: Reader | None = None,
    ) -> None:
        super().__init__(length, scenes or length, room, transform)
        self.split, self.seed, self.patch, self.curriculum = split, seed, patch, curriculum
        unknown = {kind for stage in curriculum for kind in stage["kinds"]} - set(KINDS)
        if unknown or (curriculum and curriculum[-1]["until"] < 1):
            raise ValueError(f"the curriculum must reach until: 1 with kinds among {', '.join(KINDS)}")
        self.test = SceneQuestions(split, self.images, seed)

    def labelled(self, index: int) -> Labelled:
        """See ``Packs.labelled``; the label of a patch is that of its centre."""
        scene = compose_apart(self.seed, index, self.split)
        centres = scene.mask[self.patch // 2 :: self.patch, self.patch // 2 :: self.patch]
        labels = torch.from_numpy(centres.astype(np.int64)).flatten()
        return Labelled(Image.fromarray(scene.image), labels, Digits.of(scene))

    def _weights(self, item: int) -> np.ndarray:
        """How often each kind is asked in an item."""
        stage = next(s for s in self.curriculum if (item + 1) / self.length <= s["until"])
        weights = np.array([stage["kinds"].get(kind, 0.0) for kind in KINDS], float)
        return weights / weights.sum()

    def _draw(self, pack: Pack, things: Digits, weights: np.ndarray, patches: int) -> None:
        rng = item_generator()
        places = drawn_places(rng, patches)
        while True:
            kind = int(rng.choice(len(KINDS), p=weights))
            drawn = ask(things, KINDS[kind], rng)
            if drawn is not None and not self.add(pack, *drawn, kind, places):
                return
            if drawn is None and weights[kind] == 1:
                return

    def ask(self, pack: Pack, item: int, seen: Any, patches: int) -> None:
        """See ``Packs.ask``."""
        if self.curriculum:
            self._draw(pack, seen.things, self._weights(item), patches)
            return
        for one in self.test.questions(item % self.images):
            kind = KINDS.index(one.part) if one.part in KINDS else EXIST
            self.add(pack, one.text, one.answers[0], kind, patches)
