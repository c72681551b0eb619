"""Tables 1 and 2: the paper's lines with what was measured, values by hand; files of costs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.test_results import Rows
from ttf.report import zoo
from ttf.report.lines import accuracy_of
from ttf.results import speed
from ttf.results.measured import printed_lines

PAPER = """row,model,method,training_free,params_m,gmacs,top1,images_per_s
m_none,M,uncompressed,,22.1,4.6,79.8,1000
,M,Peer,no,22.8,3.0,79.3,1500
m_ours,M,ours,yes,22.1,3.0,79.7,1400
m_far,M,far,yes,22.1,2.9,79.7,
"""


def cost(name: str, gmacs: float, **changes: object) -> speed.Row:
    row = {
        "model": "m", "method": name, "experiments": f"t/m_{name}", "params_m": 22.05, "gmacs": gmacs,
        "gmacs_tokens": gmacs, "gmacs_norms": 0.01, "images_per_s": 10.0, "median_ms": 1.0, "low_ms": 1.0,
        "high_ms": 2.0, "speed_up": 1.0, "mac_ratio": 1.0, "of_mac_ratio": 1.0, "peak_mib": 5.0, "batch": 4,
        "mode": "eager", "settings": "s", "dtype": "float32", "device": "cpu",
    }  # fmt: skip
    return {**row, **changes}


@pytest.fixture
def printed(tmp_path: Path) -> list[dict[str, str]]:
    (tmp_path / "t.csv").write_text(PAPER)
    return printed_lines(tmp_path, "t")


@pytest.fixture
def costs() -> list[speed.Row]:
    compressed = {"speed_up": 1.4, "mac_ratio": 1.5, "of_mac_ratio": 0.93}
    return [
        cost("none", 4.599),
        cost("ours", 3.06, gmacs_tokens=2.97, **compressed),
        cost("ours", 3.06, gmacs_tokens=2.97, device="gpu", **compressed),
        cost("far", 3.31, gmacs_tokens=3.2, **compressed),
    ]


def rendered(lines: list[zoo.ZooLine]) -> list[dict[str, str]]:
    head, *body = zoo.table(lines)
    return [dict(zip(head, line, strict=True)) for line in body]


def test_costs_beside_the_paper(printed: list[dict[str, str]], costs: list[speed.Row]) -> None:
    base, peer, ours, far = rendered(zoo.lines_of(printed, costs, {}, lambda name: f"no {name}", "t"))
    assert base["here (tokens alone)"] == "4.599" and base["decimal"] == "yes" and base["here"] == "22.1"
    assert ours["here (tokens alone)"] == "3.060 (2.970)" and ours["decimal"] == "tokens alone"
    assert far["decimal"] == "no"
    assert ours["top-1 %: paper (drop)"] == "79.7 (0.1)" and base["top-1 %: paper (drop)"] == "79.8"
    assert ours["images/s, V100: paper"] == "1400 (1.40x)" and far["images/s, V100: paper"] == ""
    cpu, gpu = "speed-up: cpu, float32, eager", "speed-up: gpu, float32, eager"
    assert ours[cpu] == ours[gpu] == "1.40x, 0.93 of MACs, 5 MiB"
    assert base[cpu] == "10.0 images/s, batch 4, peak 5 MiB" and base[gpu] == ""
    assert (base["here [95 %]"], peer["here [95 %]"], ours["here [95 %]"]) == ("no t/m_none", "", "no t/m_ours")
    assert peer["here (tokens alone)"] == peer["decimal"] == ""
    assert "verdict" not in base  # nothing was measured: no empty column


@pytest.mark.parametrize(
    ("whole", "tokens", "norms", "said"),
    [
        (3.04, 2.9, 0.1, "yes"),
        (3.06, 3.04, 0.1, "tokens alone"),
        (2.94, 2.93, 0.02, "with norms"),
        (3.06, 2.94, 0.02, "tokens and norms"),
        (3.06, 2.94, 0.2, "no"),
    ],
)
def test_how_a_printed_decimal_is_met(printed, whole, tokens, norms, said) -> None:
    costs = [cost("ours", whole, gmacs_tokens=tokens, gmacs_norms=norms)]
    assert rendered(zoo.lines_of(printed, costs, {}, lambda _: "", "t"))[2]["decimal"] == said


def test_accuracy_beside_the_paper(tmp_path: Path, printed: list[dict[str, str]]) -> None:
    rows = Rows(tmp_path / "runs")
    rows.base(experiments=["t/m_none"])
    rows.add("a", right=19, experiments=["t/m_ours"])
    rows.add("b", right=5, experiments=["t/m_far"])
    found = accuracy_of(str(tmp_path / "runs"), "t")
    base, _, ours, far = rendered(zoo.lines_of(printed, [], found, lambda name: name, "t"))
    assert (base["verdict"], base["drop [95 %]"], base["images"]) == ("", "", "20")
    assert ours["here [95 %]"] == "95.0 [93.0, 97.0]" and ours["drop [95 %]"].startswith("5.0 [")
    assert (ours["verdict"], far["verdict"]) == ("agrees", "loses more")


def test_the_row_on_most_images_counts(tmp_path: Path) -> None:
    rows = Rows(tmp_path / "runs")
    rows.base(limit=5)
    rows.add("few", limit=5, experiments=["t/m_ours"])
    row = rows.base().row
    many = rows.add("many", experiments=["t/m_ours"]).row
    rows.store.finish("few", {**many, "id": "few", "images": 5, "config": {**many["config"], "limit": 5}})
    ours, base = accuracy_of(str(tmp_path / "runs"), "t")["t/m_ours"]
    assert (ours.row["id"], base.row["id"]) == ("many", row["id"])


def test_files_of_costs(tmp_path: Path) -> None:
    path = tmp_path / "costs.csv"
    assert speed.read(path) == []
    speed.write([cost("none", 4.6, batch=1), cost("ours", 3.0)], path)
    again = speed.merged(speed.read(path), [cost("ours", 2.9, settings="new", extra=1)])
    assert [(row["method"], row["gmacs"]) for row in again] == [("none", "4.6"), ("ours", 2.9)]
    speed.write(again, path)
    assert [row["extra"] for row in speed.read(path)] == ["", "1"]


def test_the_paper_lines_of_this_repository_are_whole() -> None:
    root = Path(__file__).parents[2]
    for table, count in (("table1", 24), ("table2", 14)):
        printed = printed_lines(root / "results" / "paper", table)
        assert sum(bool(line["top1"]) for line in printed) == count  # lines of the paper's own table
        named = {line["row"] for line in printed if line["row"]}
        assert named == {file.stem for file in (root / "configs" / "experiment" / table).glob("*.yaml")}
