"""Reference data of depth, detection and windowed backbones: which files there are, and who checks them.

Files of one stem (``coco_mini`` of ``coco_mini.detections.json``) belong together. A module of ``tests/golden/checks``
has a function ``cases(files)`` that gives what is compared: names, and functions that do it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

DEFAULT = Path(__file__).parents[3] / "shared" / "golden" / "dense"
FOLDER = Path(os.environ.get("TTF_GOLDEN_DENSE", DEFAULT))
CHECKS = {"depth": "depth", "coco": "coco", "swin": "swin"}  # how a stem begins, and the module of checks
LATER: dict[str, str] = {}
Cases = Iterator[tuple[str, Callable[[], None]]]


@cache
def _read(path: Path) -> Any:
    return json.loads(path.read_text())


@dataclass(frozen=True)
class Files:
    """The files of one stem."""

    stem: str
    folder: Path = FOLDER

    def json(self, part: str = "") -> Any:
        """What ``stem.json`` or ``stem.PART.json`` holds."""
        return _read(self.folder / ".".join(filter(None, (self.stem, part, "json"))))


def _known(stem: str, table: dict[str, str]) -> str | None:
    return next((value for start, value in table.items() if stem.startswith(start)), None)


def reason_to_skip(stem: str) -> str | None:
    """Why files are not checked; None where they are."""
    return None if _known(stem, CHECKS) else _known(stem, LATER)


def all_cases() -> Iterator[tuple[str, str, Callable[[], None] | None]]:
    """Every case of every file in the folder: stem, name, and what checks it (None: nothing does, or not yet)."""
    for stem in sorted({path.name.split(".")[0] for path in FOLDER.glob("*.json")}):
        module = _known(stem, CHECKS)
        if module is None:
            yield stem, "", None
            continue
        for name, check in import_module(f"tests.golden.checks.{module}").cases(Files(stem)):
            yield stem, name, check
