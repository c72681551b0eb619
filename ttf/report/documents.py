"""Numbers in README.md and docs: written from rows, between markers.

A number: ``<!--= kl readings/default deit_ti -->0.0255<!--/-->``. A table: ``<!-- table NAME -->``, its lines,
``<!-- end -->``, with NAME in ``docs/report.yaml``. What can stand for a number:

* ``METRIC EXPERIMENT MODEL [KEY=VALUE ...]``: of a row; METRIC is one of its task's, ``headline`` (that of its task),
  ``gmacs``, or ``share`` (percent of the uncompressed GMACs). ``METRIC+ci`` has the interval, ``lost:METRIC`` what is
  lost to the uncompressed model.
* ``FILE.csv COLUMN [KEY=VALUE ...]``: of the one line of ``results/speed/FILE.csv`` in which KEY is VALUE, or, in
  words, begins with it.
* two of these with ``over`` between them: their ratio.

``as .2f`` at the end says how the number is written. In a value ``_`` stands for a space.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import yaml

from ttf.data.files import atomic_write
from ttf.metrics import Estimate, headline, named
from ttf.report.tables import markdown
from ttf.results.costs import read as read_costs
from ttf.results.measured import Measured, of_experiments, uncompressed

NUMBER = re.compile(r"(<!--= (.+?) -->)(.*?)(<!--/-->)")
TABLE = re.compile(r"(<!-- table (\w+) -->\n)(.*?)(<!-- end -->)", re.S)


class Numbers:
    """What stands in documents.

    Args:
        rows: all published rows.
        costs: folder of the rows of costs.
    """

    def __init__(self, rows: Sequence[Measured], costs: Path) -> None:
        self.rows, self.costs = rows, costs

    def text(self, expression: str) -> str:
        """The text of an expression, see the module's text.

        Raises:
            ValueError: no row, several rows, no such metric or column.
        """
        asked, _, form = expression.partition(" as ")
        parts = asked.split(" over ")
        if len(parts) == 2:
            top, bottom = (self._value(part) for part in parts)
            return format(top / bottom, form or ".2f")
        if form:
            return format(self._value(asked), form)
        return self._written(asked)

    def _value(self, asked: str) -> float:
        words = asked.split()
        if words[0].endswith(".csv"):
            return float(self._cost(words))
        what, m = self._row(words)
        return self._estimate(what, m).value

    def _written(self, asked: str) -> str:
        words = asked.split()
        if words[0].endswith(".csv"):
            return self._cost(words)
        what, m = self._row(words)
        if what.startswith("lost:") and m.method is None:
            return ""
        estimate = self._estimate(what, m)
        name = what.removeprefix("lost:").removesuffix("+ci")
        if name in ("gmacs", "share"):
            return f"{estimate.value:{'.3f' if name == 'gmacs' else '.0f'}}"
        metric = named(m.task, name)
        return metric.bracketed(estimate) if what.endswith("+ci") else metric.text(estimate.value)

    def _row(self, words: list[str]) -> tuple[str, Measured]:
        what, experiment, model, *further = words
        wanted = {f"model={model}", *further}
        pairs = of_experiments(self.rows, [experiment])
        found = {m.row["id"]: m for _, m in pairs if m.model == model and self._fits(m, experiment, wanted)}
        if len(found) != 1:
            raise ValueError(f"{len(found)} rows fit {' '.join(words)!r}: say which by KEY=VALUE")
        m = next(iter(found.values()))
        return what.replace("headline", headline(m.task).name), m

    def _fits(self, m: Measured, experiment: str, wanted: set[str]) -> bool:
        names = [set(one["overrides"]) for one in m.experiments if one["name"] == experiment]
        return any(wanted <= given | {f"model={m.model}"} for given in names)

    def _estimate(self, what: str, m: Measured) -> Estimate:
        name, base = what.removeprefix("lost:").removesuffix("+ci"), uncompressed(self.rows, m)
        if name in ("gmacs", "share"):
            value = m.gmacs if name == "gmacs" else 100 * m.gmacs / base.gmacs
            return Estimate(value, value, value)
        metric = named(m.task, name)
        if not what.startswith("lost:"):
            return m.estimate(metric)
        lost = metric.lost_between(base.images, m.images)
        if lost is None:
            raise ValueError(f"{name} has no paired difference")
        return lost

    def _cost(self, words: list[str]) -> str:
        file, column, *where = words
        asked = dict(one.replace("_", " ").split("=", 1) for one in where)
        lines = self._costs.setdefault(file, read_costs(self.costs / file))
        found = [line for line in lines if all(_fits(_text(line, key), value) for key, value in asked.items())]
        if len(found) != 1:
            raise ValueError(f"{len(found)} lines of {file} fit {' '.join(where)!r}")
        return str(found[0][column])

    @cached_property
    def _costs(self) -> dict[str, list[dict[str, Any]]]:
        return {}


def _text(line: Mapping[str, Any], key: str) -> str:
    """A value of a line; keys have no spaces in them, so underscores are tried as they are."""
    return str(line.get(key, line.get(key.replace(" ", "_"), ""))).replace("_", " ")


def _fits(text: str, value: str) -> bool:
    return text == value if value[:1].isdigit() else text.startswith(value)


def written(text: str, numbers: Numbers, tables: Mapping[str, Any], name: str) -> str:
    """A document with its numbers and tables from rows.

    Args:
        text: of the document.
        numbers: the rows.
        tables: content of ``docs/report.yaml``.
        name: of the document, for messages.

    Raises:
        ValueError: an expression that no row answers, or a table that ``docs/report.yaml`` does not have.
    """

    def table(found: re.Match[str]) -> str:
        if found[2] not in tables:
            raise ValueError(f"{name}: docs/report.yaml has no table {found[2]}")
        return found[1] + markdown(_cells(tables[found[2]], numbers)) + found[4]

    return TABLE.sub(table, NUMBER.sub(lambda found: found[1] + numbers.text(found[2]) + found[4], text))


def _cell(column: str, row: str, numbers: Numbers) -> str:
    """A cell: the text of an expression, or of several in <...> among other words; {MODEL} is the row for a model."""
    filled = re.sub(r"\{(\w*)\}", lambda found: row.replace("MODEL", found[1]), column)
    if "<" in filled:
        return re.sub(r"<(.+?)>", lambda found: numbers.text(found[1]), filled)
    return numbers.text(filled)


def _cells(spec: Mapping[str, Any], numbers: Numbers) -> list[list[str]]:
    """Cells of a table: its ``head``, ``columns`` (expressions) and ``rows`` (words, then what {} stands for)."""
    body = [[*map(str, words), *(_cell(c, row, numbers) for c in spec["columns"])] for *words, row in spec["rows"]]
    return [list(map(str, spec["head"])), *body]


def rewrite(root: Path, numbers: Numbers, only_compare: bool = False) -> list[str]:
    """Write README.md and docs anew; names of the documents that changed.

    Args:
        root: of the project.
        numbers: the rows.
        only_compare: nothing is written.
    """
    tables = yaml.safe_load((root / "docs" / "report.yaml").read_text())
    changed = []
    for path in (root / "README.md", *sorted((root / "docs").rglob("*.md"))):
        old = path.read_text()
        new = written(old, numbers, tables, path.name)
        if new != old:
            changed.append(path.name)
            if not only_compare:
                atomic_write(path, partial(_put, new))
    return changed


def _put(text: str, path: Path) -> None:
    path.write_text(text)
