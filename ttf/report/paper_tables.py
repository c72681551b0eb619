"""The layout "models" (Tables 1 and 2): every line that the paper prints, with what was measured here beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ttf.metrics import Estimate, Metric, headline
from ttf.report.tables import Cells, task_of, verdict
from ttf.results.costs import Row
from ttf.results.measured import Measured, of_experiments, uncompressed

LEGEND = """\
paper: quoted from {source}; everything else was measured by this code. Lines without any number here are other
methods' results after training, quoted only. GMACs: counted on the real forward pass, everything included; in brackets
the part that the numbers of tokens alone account for, without the method's own arithmetic (similarities, W X). decimal:
do they round to the paper's? yes; the tokens alone do; with LayerNorms as fvcore counts them; or no. {loss}: {points}
{below} the uncompressed model, here with a paired 95 % interval; verdict: does the paper's {loss} lie in it? images:
below 50000 these are not ImageNet's validation set, and only differences compare with the paper. V100: the paper's
images/s and their ratio to the uncompressed model. Speed-ups: median ratio in one interleaved run, random weights;
efficiency: speed-up over the ratio of the MACs; MiB: peak memory of the activations of a batch"""
YES_OR_NO = {True: "yes", False: "no", None: ""}


@dataclass(frozen=True)
class PaperLine:
    """One line.

    Attributes:
        printed: what the paper prints, by column; a column is absent where it prints nothing.
        base: what it prints of the uncompressed model.
        costs: rows of speed of this experiment, one a device, dtype and mode.
        measured: the row of accuracy, if there is one, and that of the uncompressed model.
        missing: why there is no row of accuracy.
        task: whose headline metric the table is about.
    """

    printed: Mapping[str, Any]
    base: Mapping[str, Any]
    costs: Mapping[str, Row] = field(default_factory=dict)
    measured: tuple[Measured, Measured] | None = None
    missing: str = ""
    task: str = "cls"

    @property
    def metric(self) -> Metric:
        return headline(self.task)

    @property
    def is_base(self) -> bool:
        return self.printed is self.base

    @property
    def cost(self) -> Row | None:
        """Any row of costs: parameters and GMACs are the same in all."""
        return next(iter(self.costs.values()), None)

    @cached_property
    def lost(self) -> Estimate | None:
        """How much worse than uncompressed, and the paired 95 % interval."""
        if self.measured is None or self.is_base:
            return None
        ours, base = self.measured
        return self.metric.lost_between(base.images, ours.images)

    @property
    def paper_lost(self) -> float | None:
        """How much worse in the paper."""
        name = self.metric.name
        if self.is_base or name not in self.printed:
            return None
        return self.metric.lost(float(self.base[name]), float(self.printed[name]))


def _printed(name: str) -> Callable[[PaperLine], str]:
    """A column as the paper prints it."""
    return lambda line: str(line.printed.get(name, ""))


def _gmacs(line: PaperLine) -> str:
    if line.cost is None:
        return ""
    whole, tokens = (float(line.cost[name] or line.cost["gmacs"]) for name in ("gmacs", "gmacs_tokens"))
    return f"{whole:.3f}" if whole == tokens else f"{whole:.3f} ({tokens:.3f})"


def _decimal(line: PaperLine) -> str:
    if line.cost is None or "gmacs" not in line.printed or not line.cost["gmacs_tokens"]:  # fitted: not by tokens alone
        return ""
    whole, tokens, norms = (float(line.cost[name]) for name in ("gmacs", "gmacs_tokens", "gmacs_norms"))
    readings = {"yes": whole, "tokens alone": tokens, "with norms": whole + norms, "tokens and norms": tokens + norms}
    return next((name for name, value in readings.items() if f"{value:.1f}" == str(line.printed["gmacs"])), "no")


def _params(line: PaperLine) -> str:
    return "" if line.cost is None else f"{float(line.cost['params_m']):.1f}"


def _headline(line: PaperLine) -> str:
    return line.missing if line.measured is None else line.metric.bracketed(line.measured[0].estimate(line.metric))


def _lost(line: PaperLine) -> str:
    return "" if line.lost is None else line.metric.bracketed(line.lost)


def _paper_headline(line: PaperLine) -> str:
    printed, lost = line.printed.get(line.metric.name), line.paper_lost
    return str("" if printed is None else printed) if lost is None else f"{printed} ({line.metric.text(lost)})"


def _images(line: PaperLine) -> str:
    return "" if line.measured is None else str(line.measured[0].count)


def _v100(line: PaperLine) -> str:
    speed = line.printed.get("images_per_s")
    if speed is None:
        return ""
    return str(speed) if line.is_base else f"{speed} ({float(speed) / float(line.base['images_per_s']):.2f}x)"


def columns(task: str) -> dict[str, Callable[[PaperLine], str]]:
    """Headings and cells."""
    metric = headline(task)
    return {
        "model": _printed("model"),
        "method": _printed("method"),
        "training-free": lambda line: YES_OR_NO[line.printed.get("training_free")],
        "params M: paper": _printed("params_m"),
        "here": _params,
        "GMACs: paper": _printed("gmacs"),
        "here (tokens alone)": _gmacs,
        "decimal": _decimal,
        f"{metric.head}: paper ({metric.loss})": _paper_headline,
        "here [95 %]": _headline,
        f"{metric.loss} [95 %]": _lost,
        "verdict": lambda line: verdict(metric, line.lost, line.paper_lost),
        "images": _images,
        "images/s, V100: paper": _v100,
    }


def _speed_up(row: Row | None) -> str:
    if row is None:
        return ""
    if float(row["mac_ratio"]) == 1:
        return f"{float(row['images_per_s']):.1f} images/s, batch {row['batch']}, peak {float(row['peak_mib']):.0f} MiB"
    speed, efficiency = float(row["speed_up"]), float(row["efficiency"])
    return f"{speed:.2f}x, efficiency {efficiency:.2f}, {float(row['peak_mib']):.0f} MiB"


def place(row: Row) -> str:
    """Device, dtype, mode and form of the patch embedding of a row of costs: the heading of its column."""
    parts = (row["device"], row["dtype"], row["mode"], row.get("layout"), row.get("patches"))
    return ", ".join(part for part in parts if part)


def table(lines: Sequence[PaperLine]) -> Cells:
    """Cells, header first; one column of speed for each device, dtype and mode."""
    known = columns(lines[0].task)
    head = [name for name, column in known.items() if any(column(line) for line in lines)]
    places = list(dict.fromkeys(name for line in lines for name in line.costs))
    body = [
        [*(known[name](line) for name in head), *(_speed_up(line.costs.get(name)) for name in places)] for line in lines
    ]
    return [[*head, *(f"speed-up: {name}" for name in places)], *body]


def accuracy_of(rows: Sequence[Measured], names: Sequence[str]) -> dict[str, tuple[Measured, Measured]]:
    """Experiment to its row of accuracy and that of the uncompressed model; of several rows the one on most images."""
    found: dict[str, Measured] = {}
    for name, m in of_experiments(rows, names):
        if name not in found or m.count > found[name].count:
            found[name] = m
    return {name: (m, uncompressed(rows, m)) for name, m in found.items()}


def lines_of(
    spec: Any, costs: Sequence[Row], rows: Sequence[Measured], missing: Callable[[str], str] | None = None
) -> list[PaperLine]:
    """The lines of a table in the paper's order.

    Args:
        spec: a ``ttf.experiments.Table``; rows without a title are quoted only. The uncompressed line of a model comes
            before its others.
        costs: rows of speed.
        rows: all rows.
        missing: says of an experiment without a row of accuracy why there is none.
    """
    measured = accuracy_of(rows, [row.name for row in spec.rows if row.title])
    task = task_of(spec)
    found, base = [], dict[str, Mapping[str, Any]]()
    for row in spec.rows:
        first = base.setdefault(row.paper["model"], row.paper)
        if not row.title:
            found.append(PaperLine(row.paper, first, task=task))
            continue
        mine = {place(cost): cost for cost in costs if row.name in cost["experiments"].split()}
        here = measured.get(row.name)
        why = missing(row.name) if missing and not here else ""
        found.append(PaperLine(row.paper, first, mine, here, why, task))
    return found


def sections(
    spec: Any,
    costs: Sequence[Row],
    rows: Sequence[Measured],
    missing: Callable[[str], str] | None,
    advice: Mapping[str, str],
) -> tuple[list[tuple[str, Cells]], str]:
    """Heading with cells, and the legend; ``advice`` explains each reason why something is missing."""
    lines = lines_of(spec, costs, rows, missing)
    metric = lines[0].metric
    words = LEGEND.replace("\n", " ").format(
        source=spec.options.get("source", "arXiv 2506.05709"),
        loss=metric.loss,
        points=metric.points,
        below="below" if metric.higher_is_better else "above",
    )
    said = [f"{word}: {advice[word]}" for word in dict.fromkeys(line.missing for line in lines) if word in advice]
    return [(spec.title, table(lines))], "; ".join([words, *said]) + "."
