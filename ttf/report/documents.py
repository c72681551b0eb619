"""Numbers in README.md and docs: written from rows, between markers.

A number: ``<!--= kl readings/default deit_ti -->0.0255<!--/-->``; ``ttf.report.numbers`` says what can stand for one.
A table: ``<!-- table NAME -->``, its lines, ``<!-- end -->``, with NAME in ``docs/report.yaml``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from ttf.data.files import atomic_write
from ttf.report.numbers import Numbers
from ttf.report.tables import markdown

NUMBER = re.compile(r"(<!--= (.+?) -->)(.*?)(<!--/-->)")
TABLE = re.compile(r"(<!-- table (\w+) -->\n)(.*?)(<!-- end -->)", re.S)
FIRST = re.compile(r"^ *<!--=", re.M)
CONFLICT = re.compile(r"^(?:<{7}|>{7}) ", re.M)
BEGINS = {NUMBER: "<!--=", TABLE: "<!-- table "}


def written(text: str, numbers: Numbers, tables: Mapping[str, Any], name: str) -> str:
    """A document with its numbers and tables from rows.

    Args:
        text: of the document.
        numbers: the rows.
        tables: content of ``docs/report.yaml``.
        name: of the document, for messages.

    Raises:
        ValueError: an expression that no row answers, a marker without an end or at the beginning of a line, a
            table that ``docs/report.yaml`` does not have, or what git leaves where a merge was not decided.
    """
    if CONFLICT.search(text):
        raise ValueError(f"{name}: a line begins with <<<<<<< or >>>>>>>: a merge was not decided there")
    for form, begin in BEGINS.items():
        if text.count(begin) != len(form.findall(text)):
            raise ValueError(f"{name}: a {begin} has no end (that of a number is on the same line)")
    if FIRST.search(text):
        raise ValueError(f"{name}: a line begins with <!--=, where Markdown ends the paragraph: put a word before it")

    def number(found: re.Match[str]) -> str:
        return found[1] + _text(found[2], numbers, name) + found[4]

    def table(found: re.Match[str]) -> str:
        if found[2] not in tables:
            raise ValueError(f"{name}: docs/report.yaml has no table {found[2]}")
        return found[1] + markdown(_cells(tables[found[2]], numbers, f"{name}, table {found[2]}")) + found[4]

    return TABLE.sub(table, NUMBER.sub(number, text))


def _text(expression: str, numbers: Numbers, name: str) -> str:
    try:
        return numbers.text(expression)
    except ValueError as error:
        raise ValueError(f"{name}: {expression}: {error}") from error


def _cell(column: str, words: Sequence[str], row: str, numbers: Numbers, name: str) -> str:
    """A cell: the text of an expression, or of several in <...> among other words.

    {} is the row, {MODEL} the row for a model, {0} the first of the words before it.
    """

    def filled(found: re.Match[str]) -> str:
        return words[int(found[1])] if found[1].isdigit() else row.replace("MODEL", found[1])

    text = re.sub(r"\{(\w*)\}", filled, column)
    if "<" in text:
        return re.sub(r"<(.+?)>", lambda found: _text(found[1], numbers, name), text)
    return _text(text, numbers, name)


def _cells(spec: Mapping[str, Any], numbers: Numbers, name: str) -> list[list[str]]:
    """Cells of a table: its ``head``, ``columns`` (expressions) and ``rows`` (words, then what {} stands for)."""
    body = []
    for *given, row in spec["rows"]:
        words = list(map(str, given))
        body.append([*words, *(_cell(column, words, row, numbers, name) for column in spec["columns"])])
    return [list(map(str, spec["head"])), *body]


def rewrite(root: Path, numbers: Numbers, only_compare: bool = False) -> list[str]:
    """Write README.md and docs anew; names of the documents that changed.

    Args:
        root: of the project.
        numbers: the rows.
        only_compare: nothing is written.
    """
    tables = _tables(root / "docs" / "report.yaml")
    changed = []
    for path in (root / "README.md", *sorted((root / "docs").rglob("*.md"))):
        old = path.read_text()
        new = written(old, numbers, tables, path.name)
        if new != old:
            changed.append(path.name)
            if not only_compare:
                atomic_write(path, partial(_put, new))
    return changed


def _tables(path: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): paths.root is the folder of the clone") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict) or not all(
        isinstance(table, dict) and {"head", "columns", "rows"} <= table.keys() for table in found.values()
    ):
        raise ValueError(f"{path}: names of tables with head, columns and rows belong there")
    return found


def _put(text: str, path: Path) -> None:
    path.write_text(text)
