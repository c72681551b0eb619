"""From rows to comparisons, lines, tables and figures of classification; values by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.made_up_rows import base, bits, cls, table
from ttf import report
from ttf.metrics import measure
from ttf.report import ablation, budgets, curves, figures, ranking, styles, tables
from ttf.results import measured

PNG = b"\x89PNG"
TOME = {"method": {"class": "ToMe"}, "schedule": {"class": "RemovePerBlock", "r": 13}}


# --- which rows belong together


def test_rows_of_experiments_in_the_order_of_their_names():
    rows = [cls("a", experiments=["t/tau_1", "fig4a/x"]), cls("b", experiments=["t/tau_2"])]
    found = measured.of_experiments(rows, ["t/tau_2", "t/tau_1", "t/none"])
    assert [(name, m.row["id"]) for name, m in found] == [("t/tau_2", "b"), ("t/tau_1", "a")]


def test_the_uncompressed_row_is_of_the_same_images():
    ours, others = cls("a"), [base(limit=5), base(model="other")]
    with pytest.raises(ValueError, match="mini has no uncompressed row: run"):
        measured.uncompressed([*others, ours], ours)
    assert measured.uncompressed([*others, base(), ours], ours).row["id"] == "none_mini_None"


def test_the_models_own_uncompressed_row_comes_before_that_of_fine_tuned_weights():
    own, tuned = base(weights="w"), base(weights="v")
    tuned.row["config"]["model"]["fine_tuned"] = "t/x"
    ours = cls("a", weights="v")
    ours.row["config"]["model"]["fine_tuned"] = "t/x"
    assert measured.uncompressed([tuned, own], ours) is own
    other = base(weights="x")
    assert measured.uncompressed([other, own], cls("b", weights="w")) is own


def test_nearest_tome_is_the_published_one_at_the_nearest_gmacs():
    ours = cls("ours", gmacs=1.30)
    assert measured.nearest_tome([ours], ours) is None
    elsewhere = {"method": {"class": "ToMe"}, "schedule": {"class": "KeepRatio", "ratio": 0.7}}
    rows = [cls("far", gmacs=1.1, **TOME), cls("near", gmacs=1.41, **TOME), cls("stages", gmacs=1.3, **elsewhere)]
    rows.append(cls("other", gmacs=1.3, model="other", **TOME))
    assert measured.nearest_tome(rows, ours).row["id"] == "near"


def test_readings_in_words():
    def words(**method: Any) -> str:
        return measured.reading(cls("x", method=method))

    assert words(**{"class": "ToMe"}) == "" and measured.reading(base()) == ""
    assert words(**{"class": "TokenTransform", "isolate": False, "accumulate": True}) == "the literal equations"
    both = {"class": "TokenTransform", "isolate": True, "accumulate": True}
    assert words(**both) == "class token isolated, sizes carried over"


def test_the_second_half_of_a_study_leaves_out_the_first():
    first, all_images = cls("first", limit=5), cls("all", right=12)
    (_, same), (_, rest) = measured.halves([("a", first), ("a", all_images)])
    assert same is first
    assert rest.count == 15 and rest.value("top1") == pytest.approx(100 * 7 / 15)
    assert torch.equal(rest.images["top1"], bits(12)[5:])


def test_a_metric_that_was_declared_after_the_row_comes_from_its_outcomes():
    one = cls("a", right=15)
    del one.row["metrics"]["top1"]
    assert one.value("top1") == measure("cls", one.images)["top1"]["value"] == 75


# --- lines

TABLE6 = {"tau_20": {"title": "tau 20", "paper": {"top1": 74.8}}, "tau_100": "tau_100", "none": "uncompressed"}


def test_groups_begin_with_the_uncompressed_row_and_quote_the_paper():
    spec = table("table6", "ablation", TABLE6, paper_base={"top1": 79.8})
    rows = [
        base(experiments=["table6/none"]),
        *(cls(n, 19, experiments=[f"table6/{n}"]) for n in ("tau_100", "tau_20")),
    ]
    ((heading, found),) = ablation.lines_by_heading(spec, rows, None)
    assert heading == "mini, class token isolated, sizes carried over: 20 images of scenes, float32, cpu"
    assert [line.title for line in found] == ["uncompressed", "tau 20", "tau_100"]
    assert [line.quoted for line in found] == [None, 74.8, None]
    assert found[1].paper_lost == pytest.approx(5) and found[0].is_base and not found[1].is_base


def test_lines_are_ordered_by_a_metric_where_the_table_says_so():
    spec = table("readings", "ablation", {name: name for name in "abc"}, order="kl")
    rows = [
        base(),
        *(cls(n, kl=kl, experiments=[f"readings/{n}"]) for n, kl in zip("abc", (0.3, 0.1, 0.2), strict=True)),
    ]
    ((heading, found),) = ablation.lines_by_heading(spec, rows, None)
    assert heading == "mini: 20 images of scenes, float32, cpu"
    assert [line.title for line in found] == ["uncompressed", "b", "c", "a"]
    spec = table("readings", "ablation", {name: name for name in "abc"}, order="mAP")
    with pytest.raises(ValueError, match="task cls has no metric 'mAP'"):
        ablation.lines_by_heading(spec, rows, None)


def test_rows_that_are_missing_are_named():
    spec = table("table6", "ablation", TABLE6)
    with pytest.raises(ValueError, match="no rows of table6: ttf sweep table=table6"):
        ablation.lines_by_heading(spec, [base()], None)
    rows = [cls("a", experiments=["table6/tau_20"])]
    with pytest.raises(ValueError, match="no uncompressed row"):
        ablation.lines_by_heading(spec, rows, None)
    with pytest.raises(ValueError, match="no rows of table6"):
        ablation.lines_by_heading(spec, rows, ["other"])
    with pytest.raises(ValueError, match="no rows of table6 for other: ttf sweep table=table6"):
        budgets.gather(spec, rows, ["other"])
    with pytest.raises(ValueError, match="table6 has no layout 'tree': choose one of ablation, models, curves, dense"):
        report.render(table("table6", "tree", TABLE6), rows, report.Options(Path("unused")))


# --- tables


def _cell(line: tables.Line, column: str) -> str:
    return tables.columns("cls", tables.ABLATION)[column][1](line)


@pytest.mark.parametrize(
    ("right", "paper_top1", "verdict", "difference"),
    [
        (19, 74.8, "agrees", "+0.0"),  # measured 5 [-4.8, 14.8], paper 5
        (19, 50.0, "loses less", "-24.8"),  # paper 29.8
        (12, 79.7, "loses more", "+39.9"),  # measured 40 [18.0, 62.0], paper 0.1
    ],
)
def test_verdicts_ask_whether_the_papers_drop_is_in_the_interval(right, paper_top1, verdict, difference):
    line = tables.Line("x", cls("a", right=right), base(), None, {"top1": paper_top1}, {"top1": 79.8})
    assert (_cell(line, "verdict"), _cell(line, "difference")) == (verdict, difference)


def test_the_drop_is_that_of_the_paper_beside_the_papers_own_base():
    line = tables.Line("x", cls("a", right=19), base(), None, {"top1": 70.0}, {"top1": 75.0})
    assert _cell(line, "paper") == "70.0 (-5.0)"
    assert _cell(line, "difference") == "+0.0"
    assert _cell(line, "loss").startswith("5.0 [")
    whole = tables.Line("uncompressed", line.base, line.base, None, {"top1": 75.0}, {"top1": 75.0})
    assert [_cell(whole, name) for name in ("loss", "difference", "verdict", "tome")] == [""] * 4
    alone = tables.Line("x", line.measured, line.base, None, {"top1": 70.0})
    assert (_cell(alone, "paper"), _cell(alone, "verdict")) == ("70.0", "")


def test_against_tome():
    tome = cls("t", right=13, gmacs=1.234, kl=0.2)
    ours = tables.Line("x", cls("a", right=19), base(), tome)
    # six images against none: p = 2 / 2^6; KL 0.1 below 0.2 on all of 20
    assert _cell(ours, "tome") == "+30.0 (p = 0.031), KL x 0.50 (p < 0.001) at 1.234"
    assert _cell(tables.Line("x", tome, ours.base, tome), "tome") == ""


def test_a_table_leaves_out_empty_columns_and_shows_the_efficiency():
    whole = base()
    plain = tables.table([tables.Line("uncompressed", whole, whole), tables.Line("ours", cls("a", right=19), whole)])
    assert plain[0] == ["", "top-1 % [95 %]", "drop [95 %]", "agree %", "KL", "err", "GMACs"]
    fast = tables.table([tables.Line("uncompressed", whole, whole), tables.Line("x", cls("b", speed_up=1.9), whole)])
    assert [line[-1] for line in fast] == ["speed-up", "", "1.90x, efficiency 0.95"]
    text = tables.markdown(plain).splitlines()
    assert text[1] == "|" + "---|" * 7
    assert text[3].startswith("| ours | 95.0 [76.4, 99.1] | 5.0 [")
    assert tables.table([tables.Line("ours", whole, whole)], without=("kl", "class_token_error"))[0][-1] == "GMACs"


def test_the_legend_says_what_each_column_means():
    words = tables.legend("cls", tables.ABLATION, quotes=True)
    assert words.startswith("drop: points of top-1 below the uncompressed model, paired 95 % interval; agree: images")
    assert "KL: KL(uncompressed || compressed), nats;" in words and "vs ToMe" in words and "verdict" in words
    assert "ToMe" not in tables.legend("seg", tables.BUDGETS)


def test_no_cell_is_cut_on_a_narrow_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    tables.show([["", "a long header"], ["x", "word " * 20 + "end"]], "title")
    assert "word " * 20 + "end" in capsys.readouterr().out


def test_p_values_in_words():
    assert [tables.p_value(p) for p in (0.0004, 0.031)] == ["p < 0.001", "p = 0.031"]


# --- figures


def swept(**methods: list) -> tuple[Any, list]:
    """A table of curves and its rows: title to (right, gmacs, kl) of each."""
    names = [f"fig4a/{title}" for title in methods]
    rows = [
        cls(f"{title}{number}", right, gmacs, kl, experiments=[name])
        for name, (title, points) in zip(names, methods.items(), strict=True)
        for number, (right, gmacs, kl) in enumerate(points)
    ]
    spec = table("fig4a", "curves", {title: title.replace("_", " ") for title in methods}, ranking="kl")
    return spec, [base(), *rows]


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are drawn; they are written all the same."""
    found: list[Any] = []
    monkeypatch.setattr(curves, "save", lambda figure, path: found.append(figure) or figures.save(figure, path))
    return found


def test_at_most_eight_curves_are_drawn_and_the_others_named(kept, tmp_path):
    methods = {f"m{number}": [(19, 1.5, 0.1), (17, 1.0, 0.4)] for number in range(9)}
    spec, rows = swept(**methods, ToMe=[(18, 1.5, 0.1), (16, 1.0, 0.4)])
    written = report.render(spec, rows, report.Options(tmp_path, show=False))
    assert [path.name for path in written] == ["fig4a.md", "fig4a.png"] and written[1].read_bytes().startswith(PNG)
    (figure,) = kept
    labels = [text.get_text() for text in figure.legends[0].texts]
    assert len(labels) == styles.MOST == 8 and labels[0] == "ToMe"
    assert [text.get_text() for text in figure.texts] == ["In the table alone: m7, m8."]
    looks = styles.styles(labels).values()
    assert len({(str(look["color"]), look["marker"]) for look in looks}) == 8
    text = written[0].read_text()
    assert all(f"| {title} |" in text for title in [*methods, "ToMe"])


def test_curves_have_bands_of_the_paired_drop(kept, tmp_path):
    spec, rows = swept(ours=[(19, 1.5, 0.1), (17, 1.0, 0.4)])
    (entry,) = budgets.gather(spec, rows)
    curves.against_gmacs([entry], tmp_path / "x.png")
    left, right = (axes for axes in kept[0].axes if axes.get_ylabel())
    assert left.get_ylabel() == "top-1, % (bands: of the drop)"
    assert right.get_yscale() == "log" and right.get_ylabel() == "KL(uncompressed || compressed), nats"
    (line,) = [drawn for drawn in left.lines if drawn.get_label() == "ours"]
    assert line.get_xdata().tolist() == [1.0, 1.5] and line.get_ydata().tolist() == [85, 95]
    low, high = (end(left.collections[0].get_paths()[0].vertices[:, 1]) for end in (min, max))
    lost = [rows[0].headline.lost_between(rows[0].images, m.images) for m in entry.methods["ours"]]
    assert low == pytest.approx(100 - max(e.high for e in lost)) and high == pytest.approx(
        100 - min(e.low for e in lost)
    )


def test_one_metric_against_another(kept, tmp_path):
    spec, rows = swept(ours=[(19, 1.5, 0.1), (17, 1.0, 0.4)], other=[(15, 1.5, 0.6), (11, 1.0, 0.9)])
    spec.options["scatter"] = {"fig2": "class_token_error"}
    written = report.render(spec, rows, report.Options(tmp_path, suffix="_mini", show=False))
    assert [path.name for path in written] == ["fig4a_mini.md", "fig4a_mini.png", "fig2_mini.png"]
    (panel,) = kept[1].axes
    assert panel.get_xlabel() == "class-token error, ||c - c'|| / ||c||" and panel.get_ylabel() == "top-1, %"
    assert [text.get_text() for text in panel.texts] == ["Spearman's rho -1.00"]


def test_methods_are_ranked_at_equal_cost():
    spec, rows = swept(
        a=[(20, 1.0, 0.1), (20, 2.0, 0.001)],
        b=[(20, 1.02, 0.2), (20, 1.9, 0.02)],
        c=[(20, 1.5, 0.0001)],  # a single row is no curve
    )
    (entry,) = budgets.gather(spec, rows)
    kl, found = next(m for m in curves.drawn("cls") if m.name == "kl"), entry.methods
    assert ranking.value_at(found["a"], kl, 1.5) == pytest.approx(0.01)
    assert ranking.value_at(found["a"], kl, 0.9) is None and ranking.value_at(found["a"], kl, 2.1) is None
    assert ranking.value_at(found["b"], kl, 1.0) == pytest.approx(0.2)  # begins a little above: its first row
    assert [title for _, title in ranking.order(found, kl, 1.0)] == ["a", "b"]
    cells = ranking.ranking([entry], "kl", shown=2)
    assert cells[0] == ["model", "% of MACs", "GMACs", "lowest KL", "then"]
    assert [line[1] for line in cells[1:]] == [str(percent) for percent in ranking.BUDGETS]
    assert cells[3][3:] == ["a 0.1000", "b 0.2000"] and cells[3][2] == "1.000"
    assert ranking.ranking([entry], "top1")[0][3] == "highest top-1"
