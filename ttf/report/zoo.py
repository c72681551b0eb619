"""Tables 1 and 2: every line that the paper prints, with what was measured here beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from ttf.metrics.paired import top1_difference
from ttf.report.tables import Cells
from ttf.results.measured import Measured
from ttf.results.speed import Row

LEGEND = """\
paper: quoted from arXiv 2506.05709; everything else was measured by this code. Lines without any figure here are other
methods' results after training, quoted only. GMACs: counted on the real forward pass, everything included; in brackets
the part that the numbers of tokens alone account for, without the method's own arithmetic (similarities, W X). decimal:
do they round to the paper's? yes; the tokens alone do; with LayerNorms as fvcore counts them; or no. drop: points of
top-1 below the uncompressed model, here with a paired 95 % interval; verdict: does the paper's drop lie in it? images:
below 50000 these are not ImageNet's validation set, and only drops compare with the paper. V100: the paper's images/s
and their ratio to the uncompressed model. Speed-ups: median ratio in one interleaved run, random weights; of MACs:
divided by the ratio of the MACs; MiB: peak memory of the activations of a batch."""


@dataclass(frozen=True)
class ZooLine:
    """One line.

    Attributes:
        printed: what the paper prints, by column of its CSV file; "" where it prints nothing.
        base: what it prints of the uncompressed model.
        costs: rows of speed of this experiment, one a device, dtype and mode.
        measured: the row of accuracy, if there is one, and that of the uncompressed model.
        lack: why there is no row of accuracy.
    """

    printed: Mapping[str, str]
    base: Mapping[str, str]
    costs: Mapping[str, Row] = field(default_factory=dict)
    measured: tuple[Measured, Measured] | None = None
    lack: str = ""

    @property
    def is_base(self) -> bool:
        return self.printed is self.base

    @property
    def cost(self) -> Row | None:
        """Any row of costs: parameters and GMACs are the same in all."""
        return next(iter(self.costs.values()), None)

    @cached_property
    def drop(self) -> tuple[float, tuple[float, float]] | None:
        """Points of top-1 lost, and the paired 95 % interval."""
        if self.measured is None or self.is_base:
            return None
        ours, base = self.measured
        return top1_difference(base.images["top1"], ours.images["top1"])

    @property
    def paper_drop(self) -> float | None:
        """Points of top-1 that the paper loses."""
        if self.is_base or not self.printed["top1"]:
            return None
        return float(self.base["top1"]) - float(self.printed["top1"])


def _gmacs(line: ZooLine) -> str:
    if line.cost is None:
        return ""
    whole, tokens = (float(line.cost[name]) for name in ("gmacs", "gmacs_tokens"))
    return f"{whole:.3f}" if whole == tokens else f"{whole:.3f} ({tokens:.3f})"


def _decimal(line: ZooLine) -> str:
    if line.cost is None or not line.printed["gmacs"]:
        return ""
    whole, tokens, norms = (float(line.cost[name]) for name in ("gmacs", "gmacs_tokens", "gmacs_norms"))
    readings = {"yes": whole, "tokens alone": tokens, "with norms": whole + norms, "tokens and norms": tokens + norms}
    return next((name for name, value in readings.items() if f"{value:.1f}" == line.printed["gmacs"]), "no")


def _params(line: ZooLine) -> str:
    return "" if line.cost is None else f"{float(line.cost['params_m']):.1f}"


def _top1(line: ZooLine) -> str:
    if line.measured is None:
        return line.lack
    low, high = line.measured[0].interval("top1")
    return f"{line.measured[0].value('top1'):.1f} [{low:.1f}, {high:.1f}]"


def _drop(line: ZooLine) -> str:
    if line.drop is None:
        return ""
    value, (low, high) = line.drop
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


def _paper_top1(line: ZooLine) -> str:
    drop = line.paper_drop
    return line.printed["top1"] if drop is None else f"{line.printed['top1']} ({drop:.1f})"


def _verdict(line: ZooLine) -> str:
    if line.drop is None or line.paper_drop is None:
        return ""
    low, high = line.drop[1]
    if round(low, 1) <= round(line.paper_drop, 1) <= round(high, 1):
        return "agrees"
    return "loses more" if line.paper_drop < low else "loses less"


def _images(line: ZooLine) -> str:
    return "" if line.measured is None else str(line.measured[0].count)


def _v100(line: ZooLine) -> str:
    speed = line.printed["images_per_s"]
    return speed if line.is_base or not speed else f"{speed} ({float(speed) / float(line.base['images_per_s']):.2f}x)"


COLUMNS: dict[str, Callable[[ZooLine], str]] = {
    "model": lambda line: line.printed["model"],
    "method": lambda line: line.printed["method"],
    "training-free": lambda line: line.printed["training_free"],
    "params M: paper": lambda line: line.printed["params_m"],
    "here": _params,
    "GMACs: paper": lambda line: line.printed["gmacs"],
    "here (tokens alone)": _gmacs,
    "decimal": _decimal,
    "top-1 %: paper (drop)": _paper_top1,
    "here [95 %]": _top1,
    "drop [95 %]": _drop,
    "verdict": _verdict,
    "images": _images,
    "images/s, V100: paper": _v100,
}


def _speed_up(row: Row | None) -> str:
    if row is None:
        return ""
    if float(row["mac_ratio"]) == 1:
        return f"{float(row['images_per_s']):.1f} images/s, batch {row['batch']}, peak {float(row['peak_mib']):.0f} MiB"
    speed, share = float(row["speed_up"]), float(row["of_mac_ratio"])
    return f"{speed:.2f}x, {share:.2f} of MACs, {float(row['peak_mib']):.0f} MiB"


def place(row: Row) -> str:
    """Device, dtype and mode of a row of costs: the heading of its column."""
    return f"{row['device']}, {row['dtype']}, {row['mode']}"


def table(lines: Sequence[ZooLine]) -> Cells:
    """Cells, header first; one column of speed for each device, dtype and mode."""
    head = [name for name, column in COLUMNS.items() if any(column(line) for line in lines)]
    places = list(dict.fromkeys(name for line in lines for name in line.costs))
    body = [
        [*(COLUMNS[name](line) for name in head), *(_speed_up(line.costs.get(name)) for name in places)]
        for line in lines
    ]
    return [[*head, *(f"speed-up: {name}" for name in places)], *body]


def lines_of(
    printed: Sequence[Mapping[str, str]], costs: Sequence[Row], rows: Mapping[str, tuple[Measured, Measured]],
    lack: Callable[[str], str], folder: str,
) -> list[ZooLine]:  # fmt: skip
    """The lines of a table in the paper's order.

    Args:
        printed: lines of the paper's CSV file; ``row`` names the experiment, "" for quoted lines. The uncompressed
            line of a model comes before its others.
        costs: rows of speed.
        rows: experiment to its row of accuracy and that of the uncompressed model.
        lack: says of an experiment without such a row why there is none.
        folder: of the experiments.
    """
    found, base = [], dict[str, Mapping[str, str]]()
    for line in printed:
        first, name = base.setdefault(line["model"], line), f"{folder}/{line['row']}"
        if not line["row"]:
            found.append(ZooLine(line, first))
            continue
        mine = {place(row): row for row in costs if name in row["experiments"].split()}
        measured = rows.get(name)
        found.append(ZooLine(line, first, mine, measured, "" if measured else lack(name)))
    return found
