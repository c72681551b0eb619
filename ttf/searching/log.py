"""What a search has measured, in a file, so that an interrupted one goes on where it stopped."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ttf.results.store import signature

Counts = tuple[int, ...]


class Measurements:
    """Values by schedule and batch, written line by line as they are measured.

    A line that was cut off by a kill is measured again; a file of another search is begun anew.

    Args:
        path: of the file; None: nothing is kept.
        identity: what the values depend on.
    """

    def __init__(self, path: Path | None, identity: dict[str, Any]) -> None:
        self.path, self.identity = path, identity
        self.known: dict[tuple[Counts, int], list[float]] = {}
        name = signature(identity)
        if path is None:
            return
        lines = self._lines(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(line + "\n" for line in [json.dumps({"search": name, **identity}), *lines])
        path.write_text(text)

    def _lines(self, name: str) -> list[str]:
        """The whole lines of a former run of this search."""
        assert self.path is not None
        if not self.path.is_file():
            return []
        head, *lines = self.path.read_text(errors="replace").split("\n") or [""]
        if not head.startswith(json.dumps({"search": name})[:-1]):
            print(f"{self.path} is of another search, and begins anew", file=sys.stderr)
            return []
        kept = [line for line in lines if self._take(line)]
        return kept

    def _take(self, line: str) -> bool:
        try:
            counts, batch, values = json.loads(line)
        except ValueError:
            return False
        self.known[tuple(counts), batch] = values
        return True

    def value(self, counts: Counts, batch: int, measure: Callable[[], list[float]]) -> list[float]:
        """What is known of a schedule on a batch, else what is measured now."""
        if (counts, batch) in self.known:
            return self.known[counts, batch]
        found = self.known[counts, batch] = measure()
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps([counts, batch, found]) + "\n")
        return found
