"""Tables 1 and 2: the paper's lines with what was measured, values by hand; files of costs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.made_up_rows import base, cls, table
from ttf import experiments
from ttf.experiments import Table
from ttf.report import Options, paper_tables, render
from ttf.report.paper_tables import PaperLine
from ttf.results import costs as files

WHOLE = {"model": "M", "method": "uncompressed", "params_m": 22.1, "gmacs": 4.6, "top1": 79.8, "images_per_s": 1000}
PEER = {"model": "M", "method": "Peer", "training_free": False, "params_m": 22.8, "gmacs": 3.0, "top1": 79.3}
OURS = {"model": "M", "method": "ours", "training_free": True, "gmacs": 3.0, "top1": 79.7, "images_per_s": 1400}
FAR = {"model": "M", "method": "far", "training_free": True, "gmacs": 2.9, "top1": 79.7}


def cost(name: str, gmacs: float, **changes: object) -> files.Row:
    row = {
        "model": "m",
        "method": name,
        "experiments": f"t/m_{name}",
        "params_m": 22.05,
        "gmacs": gmacs,
        "gmacs_tokens": gmacs,
        "gmacs_norms": 0.01,
        "images_per_s": 10.0,
        "median_ms": 1.0,
        "low_ms": 1.0,
        "high_ms": 2.0,
        "speed_up": 1.0,
        "mac_ratio": 1.0,
        "efficiency": 1.0,
        "peak_mib": 5.0,
        "batch": 4,
        "mode": "eager",
        "settings": "s",
        "dtype": "float32",
        "device": "cpu",
    }
    return {**row, **changes}


@pytest.fixture
def printed() -> Table:
    rows = {"m_none": ("none", WHOLE), "m_peer": ("", PEER), "m_ours": ("ours", OURS), "m_far": ("far", FAR)}
    return table("t", "models", {name: {"title": title, "paper": paper} for name, (title, paper) in rows.items()})


@pytest.fixture
def costs() -> list[files.Row]:
    compressed = {"speed_up": 1.4, "mac_ratio": 1.5, "efficiency": 0.93}
    return [
        cost("none", 4.599),
        cost("ours", 3.06, gmacs_tokens=2.97, **compressed),
        cost("ours", 3.06, gmacs_tokens=2.97, device="gpu", **compressed),
        cost("far", 3.31, gmacs_tokens=3.2, **compressed),
    ]


def rendered(lines: list[PaperLine]) -> list[dict[str, str]]:
    head, *body = paper_tables.table(lines)
    return [dict(zip(head, line, strict=True)) for line in body]


def test_costs_beside_the_paper(printed: Table, costs: list[files.Row]) -> None:
    base, peer, ours, far = rendered(paper_tables.lines_of(printed, costs, [], lambda name: f"no {name}"))
    assert base["here (tokens alone)"] == "4.599" and base["decimal"] == "yes" and base["here"] == "22.1"
    assert ours["here (tokens alone)"] == "3.060 (2.970)" and ours["decimal"] == "tokens alone"
    assert far["decimal"] == "no"
    assert ours["top-1 %: paper (drop)"] == "79.7 (0.1)" and base["top-1 %: paper (drop)"] == "79.8"
    assert ours["images/s, V100: paper"] == "1400 (1.40x)" and far["images/s, V100: paper"] == ""
    cpu, gpu = "speed-up: cpu, float32, eager", "speed-up: gpu, float32, eager"
    assert ours[cpu] == ours[gpu] == "1.40x, efficiency 0.93, 5 MiB"
    assert base[cpu] == "10.0 images/s, batch 4, peak 5 MiB" and base[gpu] == ""
    assert (base["here [95 %]"], peer["here [95 %]"], ours["here [95 %]"]) == ("no t/m_none", "", "no t/m_ours")
    assert peer["here (tokens alone)"] == peer["decimal"] == ""
    assert "verdict" not in base  # nothing was measured: no empty column


def test_speed_of_a_gpu_stands_beside_that_of_the_cpu(printed: Table, costs: list[files.Row], tmp_path: Path) -> None:
    (tmp_path / "speed").mkdir()
    form = {"layout": "channels_last", "patches": "linear"}
    files.write(costs[:2], tmp_path / "speed" / "t.csv")
    files.write([one | form for one in costs[2:]], tmp_path / "speed" / "gpu.csv")
    (path,) = render(printed, [], Options(tmp_path, missing=lambda name: "", show=False))
    text = path.read_text()
    assert "speed-up: cpu, float32, eager |" in text
    assert "speed-up: gpu, float32, eager, channels_last, linear |" in text


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
    assert rendered(paper_tables.lines_of(printed, costs, []))[2]["decimal"] == said


def test_accuracy_beside_the_paper(printed: Table) -> None:
    rows = [
        base(experiments=["t/m_none"]),
        cls("a", 19, experiments=["t/m_ours"]),
        cls("b", 5, experiments=["t/m_far"]),
    ]
    whole, peer, ours, far = rendered(paper_tables.lines_of(printed, [], rows, lambda name: name))
    assert (whole["verdict"], whole["drop [95 %]"], whole["images"]) == ("", "", "20")
    assert (whole["training-free"], peer["training-free"], ours["training-free"]) == ("", "no", "yes")
    assert ours["here [95 %]"] == "95.0 [76.4, 99.1]" and ours["drop [95 %]"].startswith("5.0 [")
    assert (ours["verdict"], far["verdict"]) == ("agrees", "loses more")


def test_the_row_on_most_images_counts() -> None:
    few = cls("few", limit=5, experiments=["t/m_ours"]).without(15)
    rows = [base(limit=5), few, base(), cls("many", experiments=["t/m_ours"])]
    ours, whole = paper_tables.accuracy_of(rows, ["t/m_ours"])["t/m_ours"]
    assert (ours.row["id"], whole.row["id"]) == ("many", "none_mini_None")


def test_what_is_missing_is_explained_below_the_table(printed: Table) -> None:
    advice = {"no data": "get it", "no weights": "find them"}
    ((heading, cells),), legend = paper_tables.sections(printed, [], [], lambda _: "no data", advice)
    assert heading == "t" and "no data" in cells[1]
    assert legend.endswith("; no data: get it.") and "drop: points of top-1 below" in legend


def test_files_of_costs(tmp_path: Path) -> None:
    path = tmp_path / "costs.csv"
    assert files.read(path) == []
    files.write([cost("none", 4.6, batch=1), cost("ours", 3.0)], path)
    again = files.merged(files.read(path), [cost("ours", 2.9, settings="new", extra=1)])
    assert [(row["method"], row["gmacs"]) for row in again] == [("none", "4.6"), ("ours", 2.9)]
    files.write(again, path)
    assert [row["extra"] for row in files.read(path)] == ["", "1"]


@pytest.mark.parametrize(("name", "count"), [("table1", 24), ("table2", 14)])
def test_the_paper_lines_of_this_repository_are_whole(name: str, count: int) -> None:
    rows = experiments.load(name).rows
    assert sum("top1" in row.paper for row in rows) == count  # lines of the paper's own table
    assert all({"model", "method"} <= row.paper.keys() for row in rows)
    bases = [row.paper for row in rows if row.paper["method"] == "uncompressed"]
    assert len(bases) == len({row.paper["model"] for row in rows})
