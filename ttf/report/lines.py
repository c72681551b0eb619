"""Which rows make a table: the experiments of a folder, their uncompressed rows, ToMe beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ttf.report.tables import PAPER_BASE, Line, grouped
from ttf.results.measured import (
    Measured,
    halves,
    nearest_tome,
    of_experiment,
    quoted,
    read,
    reading,
    title,
    uncompressed,
)

STUDY = "study"
BY_KL = (STUDY, "readings")  # best first; other tables keep the order of the paper
LABELS: dict[str, Callable[[Measured], str]] = {
    "table6": reading, "table7": reading, "table8": reading,
    STUDY: lambda m: "confirmed on the other half" if m.skip else "chosen on this half",
}  # fmt: skip
SWEPT = ("fig4a", "fig4a_coarse", "fig4a_grid", "fig4a_steps", "fig4a_tome", "fig4a_diffrate", "fig4a_prune_and_merge")


@dataclass(frozen=True)
class Sources:
    """Where tables and figures come from.

    Attributes:
        runs: folder of the rows.
        quoted: folder with what the paper prints.
        experiments: folder of the experiments' files, for their titles.
    """

    runs: str
    quoted: str
    experiments: Path


def _line(rows: Sequence[Measured], m: Measured, words: str, printed: Mapping[str, str]) -> Line:
    base = uncompressed(rows, m)
    top1 = float(printed["top1"]) if "top1" in printed else None
    return Line(words, m, base, nearest_tome(rows, m), top1, float(printed.get("base", PAPER_BASE)))


def lines_by_heading(folder: str, models: Sequence[str] | None, sources: Sources) -> list[tuple[str, list[Line]]]:
    """The lines of the table of the experiments FOLDER/*, one group a model, reading and set of images.

    Every group begins with the uncompressed row.

    Raises:
        ValueError: there are no rows of these experiments, or none of the uncompressed model.
    """
    rows = read(sources.runs)
    pairs = [(n, m) for n, m in of_experiment(rows, folder) if models is None or m.model in models]
    pairs, printed = halves(pairs) if folder == STUDY else pairs, quoted(sources.quoted, folder)
    if not pairs:
        raise ValueError(f"no rows of {folder} in {sources.runs}: run make {folder} first")
    label = LABELS.get(folder, lambda _: "")
    groups = []
    for heading, group in grouped(pairs, label).items():
        lines = [_line(rows, m, title(sources.experiments, folder, n), printed.get(n, {})) for n, m in group]
        base = lines[0].base
        others = [line for line in lines if not line.is_base]
        if folder in BY_KL:
            others.sort(key=lambda line: line.measured.value("kl"))
        if others:
            groups.append((heading, [Line("uncompressed", base, base), *others]))
    return groups


def accuracy_of(runs: str, folder: str) -> dict[str, tuple[Measured, Measured]]:
    """FOLDER/NAME to its row of accuracy and that of the uncompressed model; of several rows the one on most images."""
    rows = read(runs)
    found: dict[str, Measured] = {}
    for name, m in of_experiment(rows, folder):
        if name not in found or m.count > found[name].count:
            found[name] = m
    return {f"{folder}/{name}": (m, uncompressed(rows, m)) for name, m in found.items()}


def curves_of(models: Sequence[str] | None, sources: Sources) -> tuple[dict[str, list[Measured]], dict[str, Measured]]:
    """The rows of all methods over their budgets: title to rows, and the uncompressed row by model.

    Args:
        models: only these; None: all that have rows.
        sources: where the rows are.

    Raises:
        ValueError: there are no such rows.
    """
    rows = read(sources.runs)
    curves: dict[str, list[Measured]] = {}
    for folder in SWEPT:
        for name, m in of_experiment(rows, folder):
            if models is None or m.model in models:
                curves.setdefault(title(sources.experiments, folder, name), []).append(m)
    if not curves:
        raise ValueError(f"no rows of {' or '.join(SWEPT)} in {sources.runs}: run make fig4a first")
    found = [m for measured in curves.values() for m in measured]
    base = {m.model: uncompressed(rows, m) for m in found}
    return dict(sorted(curves.items(), key=lambda item: ("default" not in item[0], item[0]))), base
