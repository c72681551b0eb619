"""What a search has measured, in a file, so that an interrupted one goes on where it stopped."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ttf.data.files import append_lines, atomic_write, check_replaceable
from ttf.results.kept import made_anew, signature

Counts = tuple[int, ...]
BEGIN = b'{"search": '


def log_of(out: str | Path) -> Path:
    """The log beside the file of a schedule."""
    return Path(f"{out}.log")


def _is_log(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(BEGIN)) == BEGIN


def check_log(path: Path) -> None:
    """Raise ``ValueError`` where a file that is no log of a search would be replaced."""
    check_replaceable(path, _is_log, "a log of a search")


class Measurements:
    """Values by schedule and batch, written line by line as they are measured.

    A line that was cut off by a kill, or changed, is measured again; a file of another search is begun anew.

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
        check_log(path)
        before, head = self._lines(name), json.dumps({"search": name, **identity})
        lines = [line for line in before if self._take(line)]
        if len(lines) < len(before):
            made_anew(path, f"has lines that were cut off or changed ({len(before) - len(lines)}): measured again")
        if not before or lines != before:
            text = "".join(f"{line}\n" for line in (head, *lines))
            atomic_write(path, lambda temporary: temporary.write_text(text))

    def _lines(self, name: str) -> list[str]:
        """The lines of a former run of this search."""
        assert self.path is not None
        if not self.path.is_file():
            return []
        head, *lines = self.path.read_text(errors="replace").splitlines() or [""]
        if not head.startswith(json.dumps({"search": name})[:-1]):
            print(f"{self.path} is of another search, and begins anew", file=sys.stderr)
            return []
        return lines

    def _take(self, line: str) -> bool:
        """Whether a line is as it was written."""
        try:
            counts, batch, values, *digest = json.loads(line)
            known = [float(value) for value in values]
            if digest == [signature([counts, batch, values])]:
                self.known[tuple(map(int, counts)), int(batch)] = known
                return True
        except (ValueError, TypeError, RecursionError):
            return False
        return False

    def value(self, counts: Counts, batch: int, measure: Callable[[], list[float]]) -> list[float]:
        """What is known of a schedule on a batch, else what is measured now.

        Raises:
            ValueError: the file cannot be written; what stands in it stays.
        """
        if (counts, batch) in self.known:
            return self.known[counts, batch]
        found = self.known[counts, batch] = measure()
        if self.path is not None:
            said = [list(counts), batch, found]
            append_lines(self.path, [json.dumps([*said, signature(said)])])
        return found
