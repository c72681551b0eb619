"""From rows on disk to comparisons, lines, tables and figures; values by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from ttf.metrics.paired import compare, mcnemar, signed_rank, top1_difference
from ttf.report import curves, figures, lines, ranking, tables
from ttf.results import measured
from ttf.results.measured import Measured
from ttf.results.store import Store

PNG = b"\x89PNG"
IMAGES = 20


def bits(right: int, n: int = IMAGES) -> torch.Tensor:
    return torch.arange(n) < right


class Rows:
    """A folder of rows of one made-up model."""

    def __init__(self, folder: Path) -> None:
        self.store = Store(folder)

    def add(self, name: str, right: int = IMAGES, gmacs: float = 1.0, **changes: object) -> Measured:
        """A row with ``right`` of 20 answers right; keys: method, model, limit, experiments, kl, speed_up."""
        method = changes.get("method", {"method": "token_transform", "preset": "default"})
        kl = torch.full((IMAGES,), float(changes.get("kl", 0.1)))
        top1 = 100 * right / IMAGES
        values = {"top1": top1, "top5": 100.0, "agreement": 95.0, "kl": kl[0].item(), "class_token_error": 0.1}
        values["class_token_error"] += values["kl"]
        speed_up = changes.get("speed_up")
        row = {
            "id": name,
            "experiments": list(changes.get("experiments", ())),
            "config": {
                "method": method, "model": {"name": changes.get("model", "mini")}, "data": "d", "seed": 0,
                "limit": changes.get("limit"), "dtype": "float32", "task": {"name": "cls", "dataset": "scenes"},
            },
            "metrics": {key: {"value": value, "ci95": [value - 2, value + 2]} for key, value in values.items()},
            "gmacs": gmacs, "images": IMAGES, "dtype": "float32", "device": "cpu",
            "throughput": {"batch_size": 4, "compressed": {"speed_up": speed_up}} if speed_up else None,
        }  # fmt: skip
        images = {key: torch.full((IMAGES,), value) for key, value in values.items()}
        self.store.finish(name, row, {**images, "top1": bits(right), "kl": kl})
        return Measured(row, self.store)

    def base(self, **changes: object) -> Measured:
        name = f"none_{changes.get('model', 'mini')}_{changes.get('limit')}"
        return self.add(name, 20, 2.0, **{"method": {"method": "none"}, "kl": 0.0, **changes})


@pytest.fixture
def rows(tmp_path: Path) -> Rows:
    return Rows(tmp_path / "runs")


@pytest.fixture
def sources(tmp_path: Path) -> lines.Sources:
    return lines.Sources(str(tmp_path / "runs"), str(tmp_path / "paper"), tmp_path / "experiment")


# --- paired comparisons


def test_mcnemar_counts_only_the_images_where_two_rows_differ():
    a = torch.tensor([1, 1, 1, 1, 1, 1, 0, 1, 0]).bool()
    b = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 0]).bool()
    # 5 against 1 of 6: two-sided 2 (C(6,5) + C(6,6)) / 2^6
    assert mcnemar(a, b) == pytest.approx(2 * 7 / 64)
    assert mcnemar(b, a) == mcnemar(a, b)
    assert mcnemar(a, a) == 1


def test_paired_interval_of_a_difference():
    # differences 100, 0, 0, 0: mean 25, standard deviation 50, half width 1.96 * 50 / 2
    difference, (low, high) = top1_difference(bits(2, 4), bits(1, 4))
    assert difference == 25
    assert (low, high) == pytest.approx((25 - 48.999, 25 + 48.999), abs=1e-3)
    assert top1_difference(bits(3), bits(3)) == (0, (0, 0))


def test_signed_rank_of_values_that_all_fall():
    a = torch.arange(1.0, 7.0)
    assert signed_rank(a, 2 * a) == pytest.approx(2 / 2**6)
    assert signed_rank(a, a) == 1


def test_comparison_of_two_rows():
    a = {"top1": bits(2, 4), "kl": torch.tensor([1.0, 2.0, 3.0, 4.0])}
    b = {"top1": bits(1, 4), "kl": torch.tensor([2.0, 4.0, 6.0, 8.0])}
    paired = compare(a, b)
    assert (paired.top1, paired.kl_ratio, paired.top1_p) == (25, 0.5, 1)
    assert math.isnan(compare(a, {**b, "kl": torch.zeros(4)}).kl_ratio)
    with pytest.raises(ValueError, match="4 and 3 images cannot be paired"):
        compare(a, {name: values[:3] for name, values in b.items()})


# --- rows on disk


def test_outcomes_are_stored_beside_their_row(rows):
    rows.add("a", right=3)
    assert torch.equal(rows.store.images("a")["top1"], bits(3))
    assert [row["id"] for row in rows.store.rows()] == ["a"]
    (rows.store.folder / "a.images.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match=r"a\.images\.safetensors cannot be read.*force=true"):
        rows.store.images("a")
    with pytest.raises(ValueError, match="cannot be read"):
        rows.store.images("absent")


def test_a_row_notes_further_experiments(rows):
    row = rows.add("a", experiments=["fig4a/x"]).row
    assert rows.store.note_experiment(row, None) is row
    assert rows.store.note_experiment(row, "fig4a/x") is row
    assert rows.store.note_experiment(row, "a/b")["experiments"] == ["a/b", "fig4a/x"]
    assert rows.store.finished("a")["experiments"] == ["a/b", "fig4a/x"]


# --- which rows belong together


def test_rows_of_an_experiment_by_name(rows):
    rows.add("a", experiments=["table6/tau_1", "fig4a/x"])
    rows.add("b", experiments=["table60/tau_2"])
    assert [(name, m.row["id"]) for name, m in measured.of_experiment(measured.read(rows.store.folder), "table6")] == [
        ("tau_1", "a")
    ]


def test_the_uncompressed_row_is_of_the_same_images(rows):
    rows.base(limit=5)
    rows.base(model="other")
    ours = rows.add("a")
    with pytest.raises(ValueError, match="mini has no uncompressed row: run"):
        measured.uncompressed(measured.read(rows.store.folder), ours)
    rows.base()
    assert measured.uncompressed(measured.read(rows.store.folder), ours).row["id"] == "none_mini_None"


def test_nearest_tome_is_the_published_one_at_the_nearest_gmacs(rows):
    ours = rows.add("ours", gmacs=1.30)
    assert measured.nearest_tome(measured.read(rows.store.folder), ours) is None
    published, elsewhere = {"experiments": ["fig4a_tome/tome"]}, {"experiments": ["fig4a/tome_stages"]}
    for name, gmacs, changes in (
        ("far", 1.1, published),
        ("near", 1.41, published),
        ("stages", 1.3, elsewhere),
        ("other", 1.3, {**published, "model": "other"}),
    ):
        rows.add(name, gmacs=gmacs, **changes)
    assert measured.nearest_tome(measured.read(rows.store.folder), ours).row["id"] == "near"


def test_readings_in_words(rows):
    def words(**method: object) -> str:
        return measured.reading(rows.add("x", method=method))

    assert words(method="tome") == ""
    assert words(method="token_transform", preset="default") == "the default"
    assert words(method="token_transform", preset="paper") == "the literal equations"
    both = {"isolate": True, "accumulate": True}
    assert words(method="token_transform", preset="paper", **both) == "class token isolated, sizes carried over"


def test_the_second_half_of_a_study_leaves_out_the_first(rows):
    first, all_images = rows.add("first", limit=5), rows.add("all", right=12)
    (_, same), (_, rest) = measured.halves([("a", first), ("a", all_images)])
    assert same is first
    assert rest.count == 15 and rest.value("top1") == pytest.approx(100 * 7 / 15)
    assert torch.equal(rest.images["top1"], bits(12)[5:])


# --- lines


def test_lines_begin_with_the_uncompressed_row_and_quote_the_paper(rows, sources, tmp_path):
    rows.base()
    for number, name in enumerate(("tau_100", "tau_20")):
        rows.add(f"{number}", right=19, experiments=[f"table6/{name}"])
    (tmp_path / "paper").mkdir()
    (tmp_path / "paper" / "table6.csv").write_text("row,top1\ntau_20,74.8\n")
    folder = tmp_path / "experiment" / "table6"
    folder.mkdir(parents=True)
    (folder / "tau_20.yaml").write_text("title: tau 20\n")
    ((heading, found),) = lines.lines_by_heading("table6", None, sources)
    assert heading == "mini, the default: 20 images of scenes, float32, cpu"
    assert [line.title for line in found] == ["uncompressed", "tau 20", "tau_100"]
    assert [line.paper_top1 for line in found] == [None, 74.8, None]
    assert found[0].is_base and not found[1].is_base


def test_rows_that_are_missing_are_named(rows, sources):
    with pytest.raises(ValueError, match=r"no rows of table6 in .*: run make table6"):
        lines.lines_by_heading("table6", None, sources)
    rows.add("a", experiments=["table6/tau_1", "fig4a/x"])
    with pytest.raises(ValueError, match="no uncompressed row"):
        lines.lines_by_heading("table6", None, sources)
    with pytest.raises(ValueError, match="no uncompressed row"):
        lines.curves_of(None, sources)
    with pytest.raises(ValueError, match="no rows of table6"):
        lines.lines_by_heading("table6", ["other"], sources)
    with pytest.raises(ValueError, match=r"no rows of fig4a or .*run make fig4a"):
        lines.curves_of(["other"], sources)


def test_curves_put_the_default_first(rows, sources, tmp_path):
    folder = tmp_path / "experiment" / "fig4a"
    folder.mkdir(parents=True)
    (folder / "token_transform.yaml").write_text("title: Ours, default\n")
    rows.base()
    for name in ("ats", "token_transform"):
        rows.add(name, experiments=[f"fig4a/{name}"])
    found, base = lines.curves_of(["mini"], sources)
    assert list(found) == ["Ours, default", "ats"]
    assert base["mini"].row["id"] == "none_mini_None"


# --- tables


def _cell(line: tables.Line, column: str) -> str:
    return tables.COLUMNS[column](line)


@pytest.mark.parametrize(
    ("right", "paper_top1", "verdict", "difference"),
    [
        (19, 74.8, "agrees", "+0.0"),  # measured 5 [-4.8, 14.8], paper 5
        (19, 50.0, "loses less", "-24.8"),  # paper 29.8
        (12, 79.7, "loses more", "+39.9"),  # measured 40 [18.0, 62.0], paper 0.1
    ],
)
def test_verdicts_ask_whether_the_papers_drop_is_in_the_interval(rows, right, paper_top1, verdict, difference):
    line = tables.Line("x", rows.add("a", right=right), rows.base(), None, paper_top1)
    assert (_cell(line, "verdict"), _cell(line, "difference")) == (verdict, difference)


def test_the_drop_is_that_of_the_paper_beside_the_papers_own_base(rows):
    line = tables.Line("x", rows.add("a", right=19), rows.base(), None, 70.0, 75.0)
    assert _cell(line, "paper top-1 (drop)") == "70.0 (-5.0)"
    assert _cell(line, "difference") == "+0.0"
    assert _cell(line, "drop [95 %]").startswith("5.0 [")
    base = tables.Line("uncompressed", line.base, line.base, None, 75.0)
    assert [_cell(base, name) for name in ("drop [95 %]", "difference", "verdict", "vs ToMe")] == [""] * 4


def test_against_tome(rows):
    tome = rows.add("t", right=13, gmacs=1.234, kl=0.2)
    ours = tables.Line("x", rows.add("a", right=19), rows.base(), tome)
    # six images against none: p = 2 / 2^6; KL 0.1 below 0.2 on all of 20
    assert _cell(ours, "vs ToMe") == "+30.0 (p = 0.031), KL x 0.50 (p < 0.001) at 1.234"
    assert _cell(tables.Line("x", tome, ours.base, tome), "vs ToMe") == ""


def test_a_table_leaves_out_empty_columns_and_shows_the_share_of_the_possible_speed_up(rows):
    base = rows.base()
    plain = tables.table([tables.Line("uncompressed", base, base), tables.Line("ours", rows.add("a", right=19), base)])
    assert plain[0] == ["", "top-1 % [95 %]", "drop [95 %]", "agree %", "KL", "err", "GMACs"]
    fast = tables.table([tables.Line("uncompressed", base, base), tables.Line("x", rows.add("b", speed_up=1.9), base)])
    assert [line[-1] for line in fast] == ["speed-up", "", "1.90x, 0.95 of MACs"]
    text = tables.markdown(plain).splitlines()
    assert text[1] == "|" + "---|" * 7
    assert text[3].startswith("| ours | 95.0 [93.0, 97.0] | 5.0 [")
    assert tables.table([tables.Line("ours", base, base)], without=("KL", "err"))[0][-1] == "GMACs"


def test_no_cell_is_cut_on_a_narrow_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    tables.show([["", "a long header"], ["x", "word " * 20 + "end"]], "title")
    assert "word " * 20 + "end" in capsys.readouterr().out


def test_figures_in_words():
    assert [tables.small(v) for v in (0.0, 0.0327, 0.00042)] == ["0.0000", "0.0327", "4e-04"]
    assert [tables.p_value(p) for p in (0.0004, 0.031)] == ["p < 0.001", "p = 0.031"]


def test_natural_order():
    names = ["tau_100", "tau_20", "kappa_0.5", "tau_1", "kappa_0.35", "late"]
    assert sorted(names, key=tables.natural) == ["kappa_0.35", "kappa_0.5", "late", "tau_1", "tau_20", "tau_100"]


# --- figures


def test_a_method_that_never_reaches_the_uncompressed_model_has_collapsed(rows):
    base = {"mini": rows.base()}
    poor, once = [rows.add("a", right=11), rows.add("b", right=3)], [rows.add("c", right=11), rows.add("d", right=12)]
    assert curves.collapsed({"poor": poor, "once": once}, base) == ["poor"]


def test_figures_of_rows_are_written_and_name_what_they_do_not_draw(rows, tmp_path, monkeypatch):
    found = {
        "ours, default": [rows.add("a", right=19, gmacs=1.5), rows.add("b", right=17, gmacs=1.0, kl=0.4)],
        "random": [rows.add("c", right=2, gmacs=1.5, kl=3.0)],
    }
    kept = []
    monkeypatch.setattr(curves, "save", lambda figure, path: kept.append(figure) or figures.save(figure, path))
    for draw in (curves.accuracy_against_gmacs, curves.error_against_accuracy):
        draw(found, {"mini": rows.base()}, tmp_path / f"{draw.__name__}.png")
        assert (tmp_path / f"{draw.__name__}.png").read_bytes().startswith(PNG)
    assert [text.get_text() for text in kept[0].texts] == [
        "Not drawn, below 60% of the uncompressed top-1 everywhere: random."
    ]
    assert [text.get_text() for text in kept[0].legends[0].texts] == ["ours, default"]


def test_methods_are_ranked_at_equal_cost(rows):
    base = rows.base()
    found = {
        "a": [rows.add("a1", gmacs=1.0, kl=0.1), rows.add("a2", gmacs=2.0, kl=0.001)],
        "b": [rows.add("b1", gmacs=1.02, kl=0.2), rows.add("b2", gmacs=1.9, kl=0.02)],
        "c": [rows.add("c1", gmacs=1.5, kl=0.0001)],  # a single row is no curve
    }
    assert ranking.kl_at(found["a"], 1.5) == pytest.approx(0.01)
    assert ranking.kl_at(found["a"], 0.9) is None and ranking.kl_at(found["a"], 2.1) is None
    assert ranking.kl_at(found["b"], 1.0) == pytest.approx(0.2)  # begins a little above: its first row
    assert [title for _, title in ranking.order(found, 1.0)] == ["a", "b"]
    cells = ranking.ranking(found, {"mini": base}, shown=2)
    assert cells[0] == ["model", "% of MACs", "GMACs", "lowest KL", "then"]
    assert [line[1] for line in cells[1:]] == [str(percent) for percent in ranking.BUDGETS]
    assert cells[3][3:] == ["a 0.1000", "b 0.2000"] and cells[3][2] == "1.000"
