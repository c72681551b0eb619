"""Tables of what models and operators cost: a CSV of rows, the same as markdown, and on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ttf.data.files import atomic_write
from ttf.report.tables import Cells, markdown, show
from ttf.results import costs


def published(rows: Sequence[costs.Row], cells: Cells, title: str, path: Path | None) -> None:
    """Show a table; with a path of a CSV, write the rows there and the table beside them (``.md``)."""
    if path:
        costs.write(list(rows), path)
        text = f"**{title}**\n\n{markdown(cells)}"
        atomic_write(path.with_suffix(".md"), lambda file: file.write_text(text))
    show(cells, title)
    if path:
        print(path)
