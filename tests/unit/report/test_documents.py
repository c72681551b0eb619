"""Numbers of documents: expressions, markers and tables, from rows, CSV files and summaries made up here."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.made_up_rows import IMAGES, base, classified, cls
from ttf.metrics import named
from ttf.report.documents import rewrite, written
from ttf.report.numbers import Numbers
from ttf.results.measured import Measured

CSV = """method,batch,speed_up,median_ms,device
uncompressed,8,1.0,300.0,"AMD EPYC, 2 threads"
ours (default) ratio=0.7,8,1.5,200.0,"AMD EPYC, 2 threads"
"ours (default), late",8,1.6,190.0,"AMD EPYC, 2 threads"
ours (default) ratio=0.7,16,1.55,400.0,"AMD EPYC, 2 threads"
ours (default) ratio=0.7,32,1.7,790.0,"AMD EPYC, 2 threads"
ours (default),64,1.2,900.0,Intel Xeon
"""
OURS, TOME = "study/ours mini", "study/tome mini"


def _of(m: Measured, *overrides: str) -> Measured:
    """The same row with overrides in its experiments."""
    named_so = [{**one, "overrides": list(overrides)} for one in m.row["experiments"]]
    return replace(m, row={**m.row, "experiments": named_so})


@pytest.fixture
def numbers(tmp_path: Path) -> Numbers:
    costs, trainings = tmp_path / "speed", tmp_path / "training"
    (trainings / "mini" / "cls").mkdir(parents=True)
    costs.mkdir()
    (costs / "fast.csv").write_text(CSV)
    (trainings / "mini" / "cls" / "log.csv").write_text("step,top1,seconds\n100,90.5,60\n200,97.3,180\n")
    (trainings / "mini" / "cls" / "summary.json").write_text(json.dumps({"top1": {"finetuned": 95.6}, "steps": 200}))
    rows = [
        base(experiments=["study/none"]),
        cls("ours", right=17, gmacs=1.5, kl=0.02, experiments=["study/ours"]),
        cls("tome", right=11, gmacs=1.4, kl=0.05, experiments=["study/tome"]),
        _of(cls("half", right=10, gmacs=1.0, kl=0.04, experiments=["steps/evit"]), "ratio=0.5"),
        _of(cls("most", right=16, gmacs=1.5, kl=0.01, experiments=["steps/evit"]), "ratio=0.7"),
    ]
    return Numbers(rows, costs, trainings)


def _error(numbers: Numbers, expression: str) -> str:
    with pytest.raises(ValueError) as caught:
        numbers.text(expression)
    return str(caught.value)


def test_numbers_of_a_row(numbers: Numbers):
    assert numbers.text(f"top1 {OURS}") == numbers.text(f"headline {OURS}") == "85.0"
    assert numbers.text(f"kl {OURS}") == "0.0200"
    assert numbers.text(f"gmacs {OURS}") == "1.500" and numbers.text(f"share {OURS}") == "75"
    assert numbers.text(f"params_m {OURS}") == "5.70"
    assert numbers.text(f"lost:top1 {OURS}") == "15.0"
    assert numbers.text(f"top1+ci {OURS}").startswith("85.0 [")
    assert numbers.text("lost:top1 study/none mini") == ""


def test_ratios_differences_and_how_they_are_written(numbers: Numbers):
    assert numbers.text(f"kl {TOME} over kl {OURS}") == "2.50"
    assert numbers.text(f"kl {OURS} over kl {TOME} as less") == "60"
    assert numbers.text(f"kl {TOME} over kl {OURS} as .1f more") == "150.0"
    assert numbers.text(f"gmacs {OURS} over gmacs study/none mini as percent") == "75"
    assert numbers.text(f"top1 {OURS} minus top1 {TOME} as +.1f") == "+30.0"
    assert numbers.text("mini/cls/log.csv seconds step=200 over 60 as .0f") == "3"
    assert numbers.text(f"gmacs {OURS} plus gmacs {TOME} over 2 as .2f") == "1.45"  # from left to right


def test_pairs_of_rows(numbers: Numbers):
    top1, ours, tome = named("cls", "top1"), classified(17, 0.02), classified(11, 0.05)
    assert numbers.text(f"difference:top1 {OURS} against {TOME}") == "30.0"
    assert top1.difference is not None and top1.test is not None
    expected = top1.bracketed(top1.difference(ours, tome))
    assert numbers.text(f"difference:top1+ci {OURS} against {TOME}") == expected
    assert numbers.text(f"p:top1 {OURS} against {TOME}") == f"p = {top1.test(ours, tome):.3f}" == "p = 0.031"
    assert numbers.text(f"p:kl {OURS} against {TOME}") == "p < 0.001"
    both = f"p:kl {OURS} against {TOME} max p:top1 {OURS} against {TOME}"
    assert numbers.text(f"{both} as p") == "p = 0.031"
    assert numbers.text(f"{both.replace('max', 'min')} as p") == "p < 0.001"
    assert "no paired difference" in _error(numbers, f"difference:kl {OURS} against {TOME}")
    assert "no test" in _error(numbers, f"p:agreement {OURS} against {TOME}")


def test_a_part_of_the_images(numbers: Numbers):
    """The first images are right: 10 of the last 20 - 7 = 13."""
    assert numbers.text(f"top1 {OURS} images=:7") == "100.0"
    assert float(numbers.text(f"top1 {OURS} images=7:")) == pytest.approx(100 * 10 / (IMAGES - 7), abs=0.05)
    assert numbers.text(f"difference:top1 {OURS} images=:11 against {TOME} images=:11") == "0.0"


def test_between_rows_and_over_several(numbers: Numbers):
    """Half way between 0.04 and 0.01 on a logarithmic axis is 0.02."""
    assert numbers.text("kl@62.5 steps/evit mini") == "0.0200"
    assert "nothing at 30 %" in _error(numbers, "kl@30 steps/evit mini")
    assert numbers.text("count s*/* mini") == "4" and numbers.text("count steps/evit *") == "2"
    assert numbers.text("range:top1 steps/evit mini") == "50.0 to 80.0"
    assert numbers.text("spearman:kl study/* mini") == "-1.00"


def test_rows_that_are_not_one(numbers: Numbers):
    assert numbers.text("top1 steps/evit mini ratio=0.7") == "80.0"
    assert "2 rows fit" in _error(numbers, "top1 steps/evit mini")
    assert "no row fits" in _error(numbers, "top1 steps/evit other")
    assert "no row fits" in _error(numbers, "top1 steps/evit mini ratio=0.9")
    assert "top9" in _error(numbers, f"top9 {OURS}")
    assert "won:top1" in _error(numbers, f"won:top1 {OURS}")


def test_numbers_of_files(numbers: Numbers):
    assert numbers.text("fast.csv speed_up batch=16 method=ours") == "1.55"
    assert numbers.text("fast.csv speed_up batch=16 method=ours as .1f") == "1.6"
    assert numbers.text("fast.csv device batch=8") == "AMD EPYC, 2 threads"  # the same in all lines
    assert numbers.text("fast.csv highest:speed_up batch=16..64 device=AMD") == "1.7"
    assert numbers.text("fast.csv lowest:speed_up batch=8 method=ours") == "1.5"
    assert numbers.text("fast.csv sum:median_ms batch=8 as .0f") == "690"
    assert numbers.text("mini/cls/log.csv top1 step=200") == "97.3"
    assert numbers.text("mini/cls/summary.json top1.finetuned") == "95.6"


def test_what_a_column_is_wins_over_how_it_begins(numbers: Numbers):
    assert numbers.text("fast.csv batch method=ours_(default)") == "64"
    assert numbers.text("fast.csv median_ms method=ours_(default),_late") == "190.0"


def test_files_without_an_answer(numbers: Numbers):
    assert "no file" in _error(numbers, "slow.csv speed_up batch=8")
    assert "3 lines" in _error(numbers, "fast.csv speed_up batch=8")
    assert "0 lines" in _error(numbers, "fast.csv speed_up batch=9")
    assert "0 lines" in _error(numbers, "fast.csv fps batch=16")
    assert "mean:speed_up" in _error(numbers, "fast.csv mean:speed_up batch=8")
    assert "no top1.best" in _error(numbers, "mini/cls/summary.json top1.best")
    assert "no number" in _error(numbers, "fast.csv device batch=8 as .1f")


TABLES = {
    "both": {
        "head": ["", "batch", "top-1, KL", "speed-up"],
        "columns": ["<top1 {}>, <kl {}>", "fast.csv speed_up batch={1} method=ours_(default)_ratio as .2f"],
        "rows": [["**ours**", 8, "study/ours mini"], ["ToMe", 16, "study/tome mini"]],
    }
}
TEXT = "KL <!--= kl study/ours mini -->0<!--/-->.\n\n<!-- table both -->\nold\n<!-- end -->\n"
EXPECTED = """KL <!--= kl study/ours mini -->0.0200<!--/-->.

<!-- table both -->
|  | batch | top-1, KL | speed-up |
|---|---|---|---|
| **ours** | 8 | 85.0, 0.0200 | 1.50 |
| ToMe | 16 | 55.0, 0.0500 | 1.55 |
<!-- end -->
"""


def test_a_document_is_written_and_then_stays(numbers: Numbers):
    assert written(TEXT, numbers, TABLES, "a.md") == EXPECTED
    assert written(EXPECTED, numbers, TABLES, "a.md") == EXPECTED


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a <!--= kl study/ours mini -->0.1", "has no end"),
        ("a <!--= kl study/ours mini -->\n0.1<!--/-->", "has no end"),
        ("* a\n  <!--= kl study/ours mini -->0.1<!--/-->", "put a word before it"),
        ("<!-- table both -->\n", "has no end"),
        ("<!-- table neither -->\n<!-- end -->", "no table neither"),
        ("a <!--= kl study/nobody mini -->0.1<!--/-->", "kl study/nobody mini: no row fits"),
        ("a\n<<<<<<< HEAD\n", "a merge was not decided"),
        ("a\n>>>>>>> theirs\n", "a merge was not decided"),
    ],
)
def test_a_mistake_names_the_document(numbers: Numbers, text: str, words: str):
    with pytest.raises(ValueError, match=r"a\.md.*") as caught:
        written(text, numbers, TABLES, "a.md")
    assert words in str(caught.value)


def test_only_documents_that_change_are_written(numbers: Numbers, tmp_path: Path):
    (tmp_path / "docs" / "tasks").mkdir(parents=True)
    (tmp_path / "docs" / "report.yaml").write_text(json.dumps(TABLES))
    (tmp_path / "README.md").write_text(TEXT)
    (tmp_path / "docs" / "tasks" / "plain.md").write_text("no number\n")
    assert rewrite(tmp_path, numbers, only_compare=True) == ["README.md"]
    assert (tmp_path / "README.md").read_text() == TEXT
    assert rewrite(tmp_path, numbers) == ["README.md"] and rewrite(tmp_path, numbers) == []
    assert (tmp_path / "README.md").read_text() == EXPECTED


@pytest.mark.parametrize("content", ["[", "- a", "a: 1", "a: {head: [b]}", b"\xff\xfe\x00"])
def test_a_damaged_list_of_tables_is_named(numbers: Numbers, tmp_path: Path, content: str | bytes):
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text("no number\n")
    (tmp_path / "docs" / "report.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=r"report\.yaml") as caught:
        rewrite(tmp_path, numbers)
    assert "\n" not in str(caught.value)
