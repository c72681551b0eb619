"""What people see of rows: tables, figures, the terminal, Weights & Biases."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ttf.results.measured import Measured


@dataclass(frozen=True)
class Options:
    """How a table is rendered.

    Attributes:
        results: folder with rows of costs, ``speed``.
        models: only these; None: all that have rows.
        suffix: of the files' names.
        missing: says of an experiment without a row why there is none.
        advice: what helps, by what ``missing`` says.
        show: print the tables, too.
        out: folder that ``tables`` and ``figures`` are written into; None: ``results``.
    """

    results: Path
    models: Sequence[str] | None = None
    suffix: str = ""
    missing: Callable[[str], str] | None = None
    advice: Mapping[str, str] = field(default_factory=dict)
    show: bool = True
    out: Path | None = None

    def path(self, kind: str, name: str) -> Path:
        """Where a file goes: ``tables`` or ``figures``, and its name without the suffix."""
        ending = {"tables": "md", "figures": "png"}[kind]
        return (self.out or self.results) / kind / f"{name}{self.suffix}.{ending}"


def render(table: Any, rows: Sequence[Measured], options: Options) -> list[Path]:
    """Write a table and its figures.

    Args:
        table: a ``ttf.experiments.Table``.
        rows: all rows, of this table and of others: uncompressed ones and ToMe are looked up among them.
        options: where to, and of which models.

    Returns:
        The files.

    Raises:
        ValueError: an unknown layout, or there are no rows to render.
    """
    from ttf.report.layouts import render as by_layout  # matplotlib: not for every evaluation

    return by_layout(table, rows, options)
