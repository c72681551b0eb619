"""Tables from rows: pure functions to markdown and to the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Table

from ttf.results.store import Row

HEADER = ("", "top-1 %", "agree %", "KL", "err", "GMACs", "speed-up", "of MACs")


QUOTED = ["paper top-1 %", "paper GMACs"]
LEGEND = (
    "agree: images with the uncompressed model's class; KL: KL(uncompressed || compressed), nats; err: relative "
    "L2 error of the classifier's input; of MACs: speed-up / (MACs uncompressed / MACs compressed); [95 % interval]"
)


def _small(value: float) -> str:
    return f"{value:.4f}" if value == 0 or value >= 1e-3 else f"{value:.0e}"


def _cells(row: Row, base: Row) -> list[str]:
    metric = {name: m["value"] for name, m in row["metrics"].items()}
    low, high = row["metrics"]["top1"]["ci95"]
    speed = (row["throughput"] or {}).get("compressed")
    cells = [f"{metric['top1']:.1f} [{low:.1f}, {high:.1f}]", f"{metric['agreement']:.1f}", _small(metric["kl"])]
    cells += [f"{metric['class_token_error']:.3f}", f"{row['gmacs']:.3f}"]
    if not speed:
        return [*cells, "", ""]
    possible = base["gmacs"] / row["gmacs"]
    return [*cells, f"{speed['speed_up']:.2f}x", f"{speed['speed_up'] / possible:.2f}"]


def _quoted(row: Row) -> list[str]:
    paper = row.get("paper") or {}
    return [str(paper.get("top1", "")), str(paper.get("gmacs", ""))]


def comparison(rows: Mapping[str, Row]) -> list[list[str]]:
    """Cells of a comparison, header first. ``rows``: name to row; the first is the uncompressed model.

    What the paper prints for a row stands in columns of its own, quoted.
    """
    base = next(iter(rows.values()))
    cells: list[list[str]] = [list(HEADER), *([name, *_cells(row, base)] for name, row in rows.items())]
    if not any(row.get("paper") for row in rows.values()):
        return cells
    quoted = [QUOTED, *(_quoted(row) for row in rows.values())]
    return [[*line, *extra] for line, extra in zip(cells, quoted, strict=True)]


def markdown(cells: Sequence[Sequence[str]]) -> str:
    """A markdown table, header first."""
    head, *body = (f"| {' | '.join(line)} |" for line in cells)
    return "\n".join([head, "|" + "---|" * len(cells[0]), *body]) + "\n"


def terminal(cells: Sequence[Sequence[str]], title: str) -> Table:
    """The same for rich."""
    table = Table(title=title, box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for name in cells[0]:
        table.add_column(name, no_wrap=True)
    for line in cells[1:]:
        table.add_row(*line)
    return table


def by_model(rows: Sequence[Row]) -> list[tuple[str, list[list[str]]]]:
    """One comparison a model, the uncompressed row first; (title, cells). Rows of a set of images, of a device."""
    groups: dict[str, dict[str, Row]] = {}
    for row in sorted(rows, key=lambda r: (r["gmacs"], r["experiment"]), reverse=True):
        groups.setdefault(row["config"]["model"]["name"], {})[row["experiment"].split("/", 1)[1]] = row
    return [(_title(name, next(iter(group.values()))), comparison(group)) for name, group in sorted(groups.items())]


def _title(name: str, row: Row) -> str:
    return f"{name}: {row['images']} images of {row['config']['task']['dataset']}, {row['dtype']}, {row['device']}"
