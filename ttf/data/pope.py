"""Questions of POPE from the objects of images, as its official code builds them (arXiv 2305.10355, RUCAIBox/POPE).

Objects that are there, and as many that are not: any ("random"), the most frequent one of the set ("popular"), the one
that is seen most often together with the object before it ("adversarial").
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

SPLITS = ("random", "popular", "adversarial")


@dataclass(frozen=True)
class Objects:
    """What is in an image.

    Attributes:
        there: names of its objects, in the order in which they are asked for.
        unclear: names that are asked for in neither way.
    """

    there: tuple[str, ...]
    unclear: tuple[str, ...] = ()


def _ranked(counts: Counter[str]) -> list[str]:
    """Names, the most frequent first; of two that are as frequent the one that was seen first."""
    return [name for name, _ in counts.most_common()]


class Polling:
    """Questions about a set of images.

    Args:
        images: their objects.
        pairs: questions to be answered by yes, and by no, of an image and a split; fewer where an image has fewer
            objects, or lacks fewer (official code expects more of both).
        seed: of the negatives of "random", and of "adversarial" where nothing else is left.
    """

    def __init__(self, images: Sequence[Objects], pairs: int = 3, seed: int = 0) -> None:
        self.images, self.pairs, self.seed = images, pairs, seed
        self.popular = _ranked(Counter(name for image in images for name in image.there))
        together = {name: Counter[str]() for name in self.popular}
        for image in images:
            for name in image.there:
                together[name].update(other for other in image.there if other != name)
        self.together = {name: _ranked(counts) for name, counts in together.items()}

    def _absent(self, split: str, there: str, taken: Collection[str], rng: np.random.Generator) -> str | None:
        """An object that is not there; None where all have been asked for."""
        left = [name for name in self.popular if name not in taken]
        ranked = {"random": [], "popular": self.popular, "adversarial": self.together[there]}[split]
        first = next((name for name in ranked if name not in taken), None)
        return first or (str(rng.choice(left)) if left else None)

    def asked(self, index: int) -> Iterator[tuple[str, str, str]]:
        """Split, object and answer of the questions about image ``index``, a yes before each no."""
        image = self.images[index]
        for number, split in enumerate(SPLITS):
            rng = np.random.default_rng((self.seed, index, number))
            taken = {*image.there, *image.unclear}
            for there in image.there[: self.pairs]:
                absent = self._absent(split, there, taken, rng)
                if absent is None:
                    break
                taken.add(absent)
                yield split, there, "yes"
                yield split, absent, "no"
