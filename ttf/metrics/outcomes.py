"""Outcomes image by image: a dictionary of tensors, (n, ...) each, over n images.

An outcome whose number of entries differs by image (detections, say) is *ragged*: ``NAME.values`` (total, ...) has the
entries of all images one after the other, ``NAME.lengths`` (n,) int64 how many are of which.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

VALUES, LENGTHS = ".values", ".lengths"


def count(outcomes: Mapping[str, Tensor]) -> int:
    """The number of images n.

    Raises:
        ValueError: the outcomes are of different numbers of images, or a ragged one is not whole.
    """
    numbers = {name: len(values) for name, values in outcomes.items() if not name.endswith(VALUES)}
    for name, values in outcomes.items():
        lengths = outcomes.get(name.removesuffix(VALUES) + LENGTHS)
        if name.endswith(VALUES) and (lengths is None or int(lengths.sum()) != len(values)):
            raise ValueError(f"{name} does not fit its lengths")
    if len(set(numbers.values())) != 1:
        raise ValueError(f"outcomes of different numbers of images: {numbers}")
    return next(iter(numbers.values()))


def pieces(outcomes: Mapping[str, Tensor], name: str) -> tuple[Tensor, ...]:
    """An outcome by image, n tensors, whether it is ragged or not."""
    if name in outcomes:
        return outcomes[name].unbind()
    return outcomes[name + VALUES].split(outcomes[name + LENGTHS].tolist())


def names(outcomes: Mapping[str, Tensor]) -> list[str]:
    """Names of the outcomes, a ragged one once."""
    return list(dict.fromkeys(name.removesuffix(VALUES).removesuffix(LENGTHS) for name in outcomes))


def select(outcomes: Mapping[str, Tensor], chosen: slice | Sequence[int] | Tensor) -> dict[str, Tensor]:
    """The outcomes of some images.

    Args:
        outcomes: of n images.
        chosen: a slice, or numbers of images, which may come more than once.
    """
    places = torch.arange(count(outcomes))[chosen if isinstance(chosen, slice) else torch.as_tensor(chosen)]
    found: dict[str, Tensor] = {}
    for name in names(outcomes):
        if name in outcomes:
            found[name] = outcomes[name][places]
            continue
        parts = pieces(outcomes, name)
        none = outcomes[name + VALUES][:0]
        found[name + VALUES] = torch.cat([none, *(parts[place] for place in places.tolist())])
        found[name + LENGTHS] = outcomes[name + LENGTHS][places]
    return found


def split(outcomes: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """The outcomes of each image alone: what ``stack`` takes."""
    parts = {name: pieces(outcomes, name) for name in names(outcomes)}
    return [{name: part[image] for name, part in parts.items()} for image in range(count(outcomes))]


def stack(images: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The outcomes of n images from those of each.

    A tensor whose first dimension differs between the images becomes ragged.

    Raises:
        ValueError: there is no image, the images have different outcomes, or tensors that differ in another dimension.
    """
    if not images:
        raise ValueError("no outcomes without any image")
    if any(image.keys() != images[0].keys() for image in images):
        raise ValueError(f"images with different outcomes: {sorted({name for image in images for name in image})}")
    found: dict[str, Tensor] = {}
    for name in images[0]:
        parts = [image[name] for image in images]
        shapes = {tuple(part.shape) for part in parts}
        if len(shapes) == 1:
            found[name] = torch.stack(parts)
        elif () in shapes or len({shape[1:] for shape in shapes}) > 1:
            raise ValueError(f"outcome {name} differs in more than its first dimension: {sorted(shapes)}")
        else:
            found[name + VALUES] = torch.cat(parts)
            found[name + LENGTHS] = torch.tensor([len(part) for part in parts])
    return found
