"""Schedules that were searched for a model, and their files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeGuard

import yaml

from ttf.checks import check_types
from ttf.data.files import atomic_write, check_replaceable

FOLDER = Path(__file__).with_name("schedules")  # those that come with the project
KIND = "ttf searched schedule"
SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class Searched:
    """Numbers of patch tokens after every block, as ``ttf.search`` finds them.

    Images of other sizes keep the same shares of what enters a block, rounded to the nearest.

    Attributes:
        counts: patch tokens after each block, for every block of the model; they never grow.
        patches: how many enter the first block.

    Raises:
        ValueError: a count below 1 or larger than the one before.
    """

    counts: tuple[int, ...]
    patches: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "counts", tuple(self.counts))  # files hold lists
        check_types(Searched, vars(self))
        steps = (self.patches, *self.counts)
        if not self.counts or min(steps) < 1 or any(after > before for before, after in pairwise(steps)):
            raise ValueError(
                f"counts are patch tokens after each block, at least 1 and never more than before ({self.patches} at "
                f"first), got {list(self.counts)}"
            )

    @property
    def blocks(self) -> tuple[int, ...]:
        """Where it reduces, 0-based."""
        return tuple(block for block in range(len(self.counts)) if self.reduces(block))

    @property
    def drops_behind_last(self) -> bool:
        """Whether tokens go behind the attention of the last block, which heads that read other tokens would miss."""
        return self.reduces(len(self.counts) - 1)

    def _before(self, block: int) -> int:
        return self.counts[block - 1] if block else self.patches

    def check(self, depth: int) -> None:
        """See ``Schedule``."""
        if depth != len(self.counts):
            raise ValueError(f"the schedule was searched for {len(self.counts)} blocks, the model has {depth}")

    def reduces(self, block: int) -> bool:
        """See ``Schedule``."""
        return self.counts[block] < self._before(block)

    def kept(self, block: int, n: int) -> int:
        """See ``Schedule``."""
        if not self.reduces(block):
            return n
        before = self._before(block)
        return min(n, max(1, (2 * n * self.counts[block] + before) // (2 * before)))


def is_file(name: Any) -> TypeGuard[str | Path]:
    """Whether ``schedule`` names a file."""
    return isinstance(name, str | Path) and str(name).endswith(SUFFIXES)


def _content(path: Path, changed: bool = False) -> dict[str, Any]:
    """What a file of ``save`` says. Raises ``ValueError``: it is none, or was changed, and that is not asked for."""
    try:
        text = path.read_text()
        content = yaml.safe_load(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise ValueError(f"cannot read the schedule {path} ({reason})") from error
    if not isinstance(content, dict) or content.get("kind") != KIND:
        raise ValueError(f"{path} is no schedule: scripts/search.py writes such files")
    if not changed and content.get("digest") not in (None, _digest(text)):
        raise ValueError(f"{path} was changed after the search: search again, or remove its line digest if you mean it")
    return content


def _digest(text: str) -> str:
    """Of the lines of a file, but for that with its digest."""
    lines = [line for line in text.splitlines() if not line.startswith("digest:")]
    return "sha256 " + hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def load(path: str | Path, model: str | None = None) -> Searched:
    """The schedule of a file.

    Args:
        path: of the file.
        model: name of the model that it has to be for; None: any.

    Raises:
        ValueError: there is none, it was changed after the search, or is for another model.
    """
    content = _content(Path(path))
    try:
        found = Searched(content["counts"], content["patches"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}): search again") from error
    if model is not None and content.get("model", model) != model:
        raise ValueError(
            f"{path} was searched for {content['model']}, not for {model}: search again, or say "
            f"schedule.model={content['model']} if you mean it"
        )
    return found


def save(schedule: Searched, path: str | Path, provenance: Mapping[str, Any]) -> None:
    """Write a schedule with what is known of where it comes from.

    Raises:
        ValueError: the folder cannot be written, or there is another file of that name.
    """
    path = Path(path)
    check_writable(path)
    plain = {"kind": KIND, "counts": list(schedule.counts), "patches": schedule.patches, **provenance}
    text = yaml.safe_dump(plain, sort_keys=False, default_flow_style=None, width=120)
    kind, rest = text.split("\n", 1)
    atomic_write(path, lambda temporary: temporary.write_text(f"{kind}\ndigest: {_digest(text)}\n{rest}"))


def check_writable(path: str | Path) -> None:
    """Raise ``ValueError`` where a file that is no schedule would be replaced, or the name is not that of one."""
    if not is_file(path):
        raise ValueError(f"out is the file of a schedule and ends in .yaml, got {str(path)!r}")
    check_replaceable(Path(path), _is_schedule, "a schedule")


def _is_schedule(path: Path) -> bool:
    try:
        _content(path, changed=True)
    except ValueError:
        return False
    return True


def shipped(model: str, method: str, budget: float | None, folder: Path = FOLDER) -> Path:
    """The file that comes with the project for a model, a method and a budget.

    Raises:
        ValueError: there is none; the message lists those that there are.
    """
    path = folder / f"{model}.{method}.{budget}.yaml"
    if not path.is_file():
        known = ", ".join(_known(folder, model, method)) or "none"
        raise ValueError(
            f"no schedule was searched for model={model}, method={method} and budget={budget} (budgets: {known}): "
            "search one with scripts/search.py, and give schedule.file=FILE"
        )
    return path


def _known(folder: Path, model: str, method: str) -> Sequence[str]:
    return [file.stem.removeprefix(f"{model}.{method}.") for file in sorted(folder.glob(f"{model}.{method}.*.yaml"))]


def chosen(file: str | None, model: str, method: str, budget: float | None, variant: str = "") -> Searched:
    """The schedule of a file, or the one that comes with the project; for ``configs/schedule/searched.yaml``."""
    if file is not None and budget is not None:
        raise ValueError("schedule.file has a budget of its own: leave budget out")
    return load(file or shipped(model, f"{method}{variant and '-' + variant}", budget), model)
