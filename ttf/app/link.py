"""Settings of the page as the query of its address, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any
from urllib.parse import urlencode

RATIO, BUDGET = "keep ratio", "budget"
NONE = "none"


@dataclass(frozen=True)
class Settings:
    """What a person chose.

    Attributes:
        model: of ``configs/models.yaml``.
        method, other: names of methods; other may be "none".
        by: what ``value`` is, the keep ratio at each reducing block or the share of the multiply-accumulates.
        value: in (0, 1].
        blocks: 0-based numbers with commas; empty: the family's default.
        image: number of the data set's picture, from 0 on.
        question: for models that are asked one; empty: the first one of the data set.
    """

    model: str = ""
    method: str = "token_transform"
    other: str = NONE
    by: str = RATIO
    value: float = 0.7
    blocks: str = ""
    image: int = 0
    question: str = ""

    def query(self) -> str:
        """ "?model=vit_mini&value=0.5": what differs from the defaults, and the model."""
        default = asdict(Settings())
        told = {key: value for key, value in asdict(self).items() if value != default[key]}
        return "?" + urlencode({"model": self.model, **told})

    def options(self) -> dict[str, Any]:
        """Of ``ttf.apply``. Raises ``ValueError`` for blocks that are no numbers."""
        chosen: dict[str, Any] = {"ratio" if self.by == RATIO else "budget": self.value}
        return chosen | ({"blocks": parsed_blocks(self.blocks)} if self.blocks.strip() else {})


def parsed_blocks(words: str) -> list[int]:
    """ "3, 6, 9" as numbers. Raises ``ValueError`` for anything else."""
    try:
        return [int(word) for word in words.replace(",", " ").split()]
    except ValueError:
        raise ValueError(
            f"blocks are numbers from 0 on with commas between them, such as 3,6,9, got {words!r}"
        ) from None


def settings(query: Mapping[str, str], models: list[str], methods: list[str]) -> Settings:
    """Settings of a query; what is missing there or cannot be has its default."""
    default = Settings(model=models[0])
    told = {field.name: query[field.name] for field in fields(Settings) if field.name in query}
    choices = {"model": models, "method": methods, "other": [NONE, *methods], "by": [RATIO, BUDGET]}
    found: dict[str, Any] = {k: v for k, v in told.items() if k not in choices or v in choices[k]}
    for key, kind in (("value", float), ("image", int)):
        try:
            found[key] = kind(found.get(key, getattr(default, key)))
        except ValueError:
            del found[key]
    if not 0 < found.get("value", 1) <= 1:
        del found["value"]
    return Settings(**{**asdict(default), **found})
