"""POPE on CamVid's street scenes: is there a bicyclist in the image? What is there is known from the label maps.

An image is a part of a photograph, 0.4 of its width and height. Whole photographs have sky, road and buildings nearly
always: about them the words of the questions alone answer 93 % of the test images' questions.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ttf.data.packed_questions import IGNORED, Labelled, Pack, Packs, Reader, drawn_places, item_generator
from ttf.data.pope import Objects, Polling
from ttf.data.questions import Question
from ttf.data.segmentation import IGNORED as VOID
from ttf.data.segmentation import CamVid

QUESTIONS = 1  # raise when questions change
LEAST = 0.005  # share of the pixels that an object has; one with fewer is not asked for
SHARE = 0.4  # of a photograph's sides
IN_TRAINING = (0.3, 0.7)


def question(name: str) -> str:
    """What is asked about a class."""
    return f"is there a {name} in the image ?"


def objects(mask: Tensor, least: float, order: np.random.Generator) -> Objects:
    """The classes of a label map (H, W) in a drawn order: in that of their numbers sky would always come first."""
    counts = torch.bincount(mask[mask != VOID], minlength=len(CamVid.classes)).tolist()
    drawn = [int(number) for number in order.permutation(len(counts))]
    there = tuple(CamVid.classes[n] for n in drawn if counts[n] >= least * mask.numel())
    unclear = tuple(CamVid.classes[n] for n in drawn if 0 < counts[n] < least * mask.numel())
    return Objects(there, unclear)


def cut(
    picture: Image.Image, mask: Tensor, rng: np.random.Generator, smallest: float, largest: float
) -> tuple[Image.Image, Tensor]:
    """A part of a photograph in its shape, anywhere in it.

    Args:
        picture, mask: H x W pixels, (H, W).
        rng: draws the place.
        smallest, largest: share of the sides.
    """
    share = rng.uniform(smallest, largest)
    width, height = (round(share * side) for side in picture.size)
    left, top = int(rng.integers(picture.width - width + 1)), int(rng.integers(picture.height - height + 1))
    return picture.crop((left, top, left + width, top + height)), mask[top : top + height, left : left + width]


class CamVidPope:
    """A part of each of CamVid's photographs with the questions of POPE's three splits.

    Args:
        root: CamVid's folder.
        split: "test" (233 photographs), "val" or "train".
        pairs: see ``Polling``.
        least: share of the pixels that an object has at least; classes with fewer pixels are not asked for.
        share: of a photograph's sides that an image has; 1: whole photographs.
        seed: of the parts, of the order of an image's objects, and of the drawn negatives.

    Raises:
        MissingError: no CamVid there.
    """

    transform: Any = None

    def __init__(
        self,
        root: str | Path,
        split: str = "test",
        pairs: int = 3,
        least: float = LEAST,
        share: float = SHARE,
        seed: int = 0,
    ) -> None:
        if not 0 < share <= 1:
            raise ValueError(f"share is that of a photograph's sides, in (0, 1], got {share}")
        self.pictures, self.pairs, self.least = CamVid(root, split), pairs, least
        self.share, self.seed = share, seed

    def part(self, index: int) -> tuple[Image.Image, Tensor]:
        """Image ``index`` and its label map."""
        place = np.random.default_rng((self.seed, index, 0))
        return cut(self.pictures.image(index), self.pictures.mask(index), place, self.share, self.share)

    @cached_property
    def polling(self) -> Polling:
        """The questions, which depend on all label maps."""
        orders = (np.random.default_rng((self.seed, index, 1)) for index in range(len(self)))
        images = [objects(self.part(n)[1], self.least, order) for n, order in enumerate(orders)]
        return Polling(images, self.pairs, self.seed)

    def __len__(self) -> int:
        return len(self.pictures)

    def image(self, index: int) -> Image.Image:
        """Image ``index``."""
        return self.part(index)[0]

    def questions(self, index: int) -> list[Question]:
        """The questions about image ``index``."""
        asked = enumerate(self.polling.asked(index))
        return [Question(f"{index}-{n}", question(name), (said,), "pope", split) for n, (split, name, said) in asked]

    def digest(self) -> str:
        """Identity of the set."""
        return f"camvid-pope-{QUESTIONS}-{self.pairs}-{self.least}-{self.share}-{self.seed}-{self.pictures.digest()}"

    def __getitem__(self, index: int) -> tuple[Image.Image, list[Question]]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.image(index), self.questions(index)


def patch_labels(mask: Tensor, side: int, patch: int) -> Tensor:
    """What covers most of each patch of the padded and resized image, (n,); ``IGNORED`` for padding and void."""
    height, width = mask.shape
    longest = max(height, width)
    square = Image.new("L", (longest, longest), VOID)
    square.paste(Image.fromarray(mask.numpy().astype(np.uint8)), ((longest - width) // 2, (longest - height) // 2))
    pixels = torch.from_numpy(np.array(square.resize((side, side), Image.Resampling.NEAREST))).long()
    patches = pixels.unfold(0, patch, patch).unfold(1, patch, patch).flatten(2).flatten(0, 1)
    labels = patches.mode(dim=1).values
    return labels.masked_fill(labels == VOID, IGNORED)


class PackedStreets(Packs):
    """Questions about CamVid's photographs: "is there a car in the image ?", a kind for each class.

    Training items are parts of many sizes, mirrored every second time; as many answers are yes as no where that is
    possible. Test items are those of ``CamVidPope`` with a question for each class whose answer is clear.

    Args:
        root: CamVid's folder.
        split: "train" or "val".
        length: number of items; None: as many as photographs.
        views: how many different parts of photographs; None: one of each, to test.
        side, patch: of the images that the tower takes, and of its patches, in pixels.
        least: see ``CamVidPope``.
        room: ids of all questions of an item.
        seed: of the parts.
        transform: the model's ``Reader``.
    """

    kinds = CamVid.classes

    def __init__(
        self,
        root: str | Path,
        split: str,
        length: int | None = None,
        views: int | None = None,
        side: int = 256,
        patch: int = 16,
        least: float = LEAST,
        room: int = 144,
        seed: int = 0,
        transform: Reader | None = None,
    ) -> None:
        self.test, self.views, self.seed, self.least = CamVidPope(root, split, least=least), views, seed, least
        self.side, self.patch = side, patch
        super().__init__(length or len(self.test), views or len(self.test), room, transform)

    def labelled(self, index: int) -> Labelled:
        """See ``Packs.labelled``."""
        rng, place = np.random.default_rng((self.seed, index)), index % len(self.test)
        if self.views is None:
            picture, mask = self.test.part(place)
        else:
            picture, mask = cut(self.test.pictures.image(place), self.test.pictures.mask(place), rng, *IN_TRAINING)
            if rng.integers(2):
                picture, mask = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT), mask.flip(1)
        return Labelled(picture, patch_labels(mask, self.side, self.patch), objects(mask, self.least, rng))

    def _drawn(self, things: Objects, rng: np.random.Generator) -> list[tuple[str, str]]:
        """Classes with answers in a drawn order, half of them no."""
        absent = [name for name in self.kinds if name not in {*things.there, *things.unclear}]
        count = max(2, len(absent))
        there = rng.permutation(list(things.there))[:count].tolist()
        pairs = [*((name, "yes") for name in there), *((name, "no") for name in absent)]
        return [pairs[place] for place in rng.permutation(len(pairs))]

    def ask(self, pack: Pack, item: int, seen: Any, patches: int) -> None:
        """See ``Packs.ask``."""
        things: Objects = seen.things
        if self.views is None:
            clear = [name for name in self.kinds if name not in things.unclear]
            asked, places = [(name, "yes" if name in things.there else "no") for name in clear], patches
        else:
            rng = item_generator()
            asked, places = self._drawn(things, rng), drawn_places(rng, patches)
        for name, answer in asked:
            if not self.add(pack, question(name), answer, self.kinds.index(name), places):
                return
