"""The parts of the speed harness: equal cost by counting, rows and their table, figures, compiled code."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

import ttf
from ttf.bench import modes
from ttf.bench.arithmetic import arithmetic
from ttf.bench.budget import nearest
from ttf.bench.counting import Shapes
from ttf.report import speed, speed_figures
from ttf.results import costs
from ttf.schedule import KeepRatio, RemovePerBlock

Tiny = Callable[..., VisionTransformer]
Images = Callable[..., Tensor]
RESULTS = Path(__file__).parents[3] / "results"
SIZES = {"img_size": 64, "patch_size": 8, "embed_dim": 48, "depth": 4, "num_heads": 3}
NETWORK = {"_target_": "timm.create_model", "model_name": "vit_tiny_patch16_224", **SIZES}


def test_benchmarks_know_neither_tables_nor_scripts() -> None:
    for file in (RESULTS.parent / "ttf" / "bench").glob("*.py"):
        assert not re.search(r"import .*\bcli\b|ttf\.(cli|report)", file.read_text()), file


# Equal cost


@given(
    st.lists(st.floats(0.01, 10.0), min_size=2, max_size=200),
    st.floats(-10.0, 1000.0),
    st.booleans(),
)
def test_the_nearest_count_of_a_monotone_function(steps: list[float], target: float, falls: bool) -> None:
    values = torch.tensor(steps, dtype=torch.float64).cumsum(0).tolist()
    values = values[::-1] if falls else values
    tried: list[int] = []

    def count(number: int) -> float:
        tried.append(number)
        return values[number]

    found = nearest(count, 0, len(values) - 1, target)
    assert abs(values[found] - target) == min(abs(value - target) for value in values)
    assert len(tried) == len(set(tried))  # a count may take a second


def test_few_counts_are_enough() -> None:
    tried: list[int] = []

    def count(r: int) -> float:
        tried.append(r)
        return 200.0 * max(1 - r / 330, 0.1) ** 1.5

    assert nearest(count, 0, 2048, 120.0) == 95
    assert len(tried) <= 14


@pytest.mark.parametrize("options", [None, {"ratio": 0.5}, {"method": "tome", "schedule": RemovePerBlock(7)}])
def test_shapes_cost_what_a_real_pass_costs(options: dict[str, Any] | None) -> None:
    shapes = Shapes(OmegaConf.create(NETWORK))
    model = VisionTransformer(**SIZES)
    if options is not None:
        ttf.apply(model, **options)
    assert shapes.patches == 64 and shapes.size == (3, 64, 64)
    assert shapes.gmacs({"ratio": 0.3}) < shapes.gmacs(None)  # one after the other on the same model
    assert shapes.gmacs(options) == pytest.approx(ttf.measure.gmacs(model, (3, 64, 64)), rel=1e-2)


@pytest.mark.parametrize("options", [None, {"ratio": 0.5}, {"method": "evit", "ratio": 0.5}])
def test_shapes_know_the_whole_arithmetic(options: dict[str, Any] | None) -> None:
    shapes, model = Shapes(OmegaConf.create(NETWORK)), VisionTransformer(**SIZES)
    counted = arithmetic(model if options is None else ttf.apply(model, **options), torch.zeros(1, 3, 64, 64))
    shapes.arithmetic({"ratio": 0.3})
    assert shapes.arithmetic(options) == pytest.approx(counted, rel=1e-2)


def test_a_number_of_tokens_that_depends_on_the_image_is_not_counted_from_shapes() -> None:
    with pytest.raises(ValueError, match="depends on the image"):
        Shapes(OmegaConf.create(NETWORK)).gmacs({"method": "ats"})


# What the tokens alone cost


def test_tokens_alone_are_those_that_the_method_has(tiny: Tiny, images: Images) -> None:
    """EViT's fused token is one of them; pruning at the same schedule does not have it."""
    evit = ttf.apply(tiny(), "evit", schedule=KeepRatio(0.5, (3, 6)))
    pruned = ttf.apply(tiny(), "random_pruning", schedule=KeepRatio(0.5, (3, 6)))
    counts, fewer = arithmetic(evit, images()), arithmetic(pruned, images())
    assert fewer["gmacs_tokens"] < counts["gmacs_tokens"] <= counts["gmacs"]
    assert fewer["gmacs_tokens"] == fewer["gmacs"] and fewer["gmacs_norms"] > 0


def test_no_tokens_alone_where_they_come_back_within_the_block(tiny: Tiny, images: Images) -> None:
    dense = ttf.apply(tiny(), "tome_dense", ratio=0.5)
    assert arithmetic(dense, images())["gmacs_tokens"] == ""


def test_an_adaptive_method_is_counted_on_its_images(tiny: Tiny, images: Images) -> None:
    x = images(4)
    model = ttf.apply(tiny(), "ats", ratio=0.6)
    assert arithmetic(model, x)["gmacs"] == pytest.approx(ttf.measure.gmacs(model, x.shape, x) / 4)


# Rows


ROW = {
    "model": "m",
    "experiments": "",
    "params_m": 22.05,
    **dict.fromkeys(("gmacs", "gmacs_tokens"), 3.0),
    **dict.fromkeys(("images_per_s", "median_ms", "low_ms", "speed_up", "mac_ratio", "efficiency"), 1.0),
    "high_ms": 2.0,
    "peak_mib": 5.0,
    "batch": 4,
    "mode": "eager",
    "dtype": "float32",
    "device": "cpu",
}
OF_BENCHMARK = {"benchmark": "equal", "pixels": "224", "tokens": 197, "attention": "sdpa"}


def cost(name: str, **changes: object) -> costs.Row:
    """A row as older files have it."""
    return {"method": name, **ROW, **changes}


def row(name: str, **changes: object) -> costs.Row:
    return cost(name, **{**OF_BENCHMARK, **changes})


def test_rows_of_a_benchmark_with_others_are_replaced() -> None:
    old = [row("uncompressed"), row("EViT", settings="before"), row("EViT", batch=8), row("EViT", benchmark="methods")]
    new = [row("uncompressed", settings="now"), row("ToMe", settings="now")]
    again = costs.merged(old, new)
    assert again == [*old[2:], *new]


def test_rows_of_another_size_device_or_mode_are_kept() -> None:
    old = [
        row("ToMe", pixels="384"),
        row("ToMe", device="gpu"),
        row("ToMe", mode="compiled"),
        row("ToMe", dtype="half"),
    ]
    assert costs.merged(old, [row("ToMe")])[:-1] == old


@pytest.mark.parametrize("table", ["table1", "table2"])
def test_rows_of_older_files_are_read_and_replaced(table: str) -> None:
    rows = costs.read(RESULTS / "speed" / f"{table}.csv")
    header, *lines = speed.cells(rows)
    assert len(lines) == len(rows) > 0 and {"model", "GMACs", "efficiency", "peak MiB"} <= set(header)
    assert speed.heading(rows).startswith("float32, ")
    new = [{**rows[0], "benchmark": table, "pixels": "224", "settings": "new"}]
    left = costs.merged(rows, new)
    assert [r["model"] for r in left].count(rows[0]["model"]) == 1


def test_a_table_says_what_differs_and_heads_with_what_does_not() -> None:
    rows = [row("uncompressed", gmacs_of_reference=""), row("ToMe", gmacs_of_reference=1.0123, peak_mib=float("nan"))]
    header, base, tome = speed.cells(rows)
    assert speed.heading(rows) == "float32, cpu, sdpa, weights at random" and "device" not in header
    assert base[header.index("GMACs to reference")] == "" and tome[header.index("GMACs to reference")] == "+1.2 %"
    assert tome[header.index("peak MiB")] == ""
    two = [*rows, row("ToMe", device="gpu")]
    assert speed.heading(two) == "float32, sdpa, weights at random" and "device" in speed.cells(two)[0]


# Figures


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    figures: list[Figure] = []
    monkeypatch.setattr(speed_figures, "save", lambda figure, _: figures.append(figure))
    return figures


def test_efficiency_of_every_method_beside_that_over_batches(drawn: list[Figure], tmp_path: Path) -> None:
    names = ("uncompressed", "ours (default) ratio=0.7", "PPT ratio=0.7")
    rows = [row(name, benchmark="methods", batch=8, efficiency=0.9 + 0.1 * n) for n, name in enumerate(names)]
    rows.append(row("Prune and Merge", benchmark="prune_and_merge", batch=8, efficiency=0.8, fitted_on="2 images"))
    rows.append(row("EViT ratio=0.7", benchmark="prune_and_merge", batch=8))  # it is among the methods, or not shown
    rows += [row("ToMe schedule.r=11", batch=batch, median_ms=1.5) for batch in (8, 1)]
    speed_figures.efficiency_of_methods(rows, tmp_path / "speed.png")
    left, right = drawn[0].axes
    assert [tick.get_text() for tick in left.get_yticklabels()] == ["Prune and Merge", "ours (default)", "PPT"]
    assert [float(container.lines[0].get_xdata()[0]) for container in left.containers] == [0.8, 1.0, 1.1]
    assert "efficiency: speed-up / MAC ratio" in left.get_xlabel() and "m, batch 8: cpu, float32" in left.get_title()
    (tome,) = right.containers
    assert sorted(tome.lines[0].get_xdata()) == pytest.approx([1.04, 8.32]) and right.get_xscale() == "log"
    assert right.get_xlabel() == "batch size, images"


def test_efficiency_over_tokens(drawn: list[Figure], tmp_path: Path) -> None:
    ours = [
        row("ours (default) ratio=0.7", tokens=t, batch=b, efficiency=e) for t, b, e in ((577, 2, 0.9), (197, 4, 1))
    ]
    rows = [row("uncompressed"), *ours, row("DPC-KNN ratio=0.7"), row("EViT", model="deit_s", tokens=1601)]
    speed_figures.efficiency_over_tokens(rows, tmp_path / "tokens.png")
    (axes,) = drawn[0].axes
    lines = [container.lines[0] for container in axes.containers]
    assert [list(line.get_ydata()) for line in lines] == [[1.0, 0.9], [1.0]]
    assert [line.get_linestyle() for line in lines] == ["-", "None"]  # a model of one size is a point
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["197\nbatch 4", "577\nbatch 2", "1601\nbatch 4"]
    assert {note.get_text() for note in axes.texts} == {"m", "DeiT-S"} and "cpu" in axes.get_title()
    assert [label.get_text() for label in drawn[0].legends[0].get_texts()] == ["ours (default)", "EViT"]


def test_methods_are_told_apart_without_colour() -> None:
    looks = list(speed_figures.LOOKS.values())
    assert len({look["marker"] for look in looks}) == len({look["linestyle"] for look in looks}) == len(looks)


def test_figures_of_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="run make speed first"):
        speed_figures.gather("speed", None, tmp_path)
    costs.write([row("ToMe"), row("ours", benchmark="tokens")], tmp_path / "m_equal.csv")
    costs.write([cost("ToMe")], tmp_path / "table1.csv")
    assert [r["method"] for r in speed_figures.gather("speed_tokens", None, tmp_path)] == ["ours"]
    with pytest.raises(ValueError, match="no rows for figure=speed"):
        speed_figures.gather("speed", ["other"], tmp_path)
    speed_figures.efficiency_of_methods(speed_figures.gather("speed", ["m"], tmp_path), tmp_path / "speed.png")
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")


def test_the_figure_of_a_gpu(tmp_path: Path) -> None:
    names = ("deit_s", "few_images", "vit_b_conv", "gpu_batches", "gpu_tokens")
    found = [row(way, benchmark=name) for name in names for way in ("ours (default) ratio=0.7", "EViT ratio=?")]
    costs.write(found, tmp_path / "gpu.csv")
    speed_figures.efficiency_on_gpu(speed_figures.gather("speed_gpu", None, tmp_path), tmp_path / "gpu.png")
    assert (tmp_path / "gpu.png").read_bytes().startswith(b"\x89PNG")


# Modes


@pytest.mark.parametrize("mode", ["graphs", "captured", "compiled_captured"])
def test_graphs_are_for_gpus(mode: str) -> None:
    with pytest.raises(ValueError, match=f"modes=\\[{mode}\\] are CUDA graphs and need a GPU"):
        modes.check(["eager", mode], torch.device("cpu"), "float32")
    modes.check(["eager", mode], torch.device("cuda"), "bfloat16")
    assert modes.holds_memory(mode, torch.device("cuda"))


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modes, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"modes=\[onnx\] needs onnx, onnxscript, onnxruntime: .*ttf\[onnx\]"):
        modes.check(["eager", "onnx"], torch.device("cpu"), "float32")


def test_onnx_is_for_the_cpu_in_float32() -> None:
    with pytest.raises(ValueError, match="device=cpu dtype=float32"):
        modes.check(["onnx"], torch.device("cpu"), "bfloat16")


@pytest.mark.parametrize(("method", "options"), [("token_transform", {}), ("tome", {}), ("ppt", {})])
def test_an_exported_model_answers_as_torch(method: str, options: dict[str, Any], tiny: Tiny, images: Images) -> None:
    for needed in modes.EXTRA:
        pytest.importorskip(needed)
    model, x = ttf.apply(tiny(depth=2), method, blocks=(0, 1), **options), images()
    exported = modes.ready(model, "onnx", x, method)
    with torch.no_grad():
        torch.testing.assert_close(exported(x), model(x), atol=1e-4, rtol=1e-4)
    assert isinstance(exported, modes.Exported) and exported.error < 1e-4


def test_why_a_model_cannot_be_compiled_is_said(tiny: Tiny, images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no compiler was found")

    monkeypatch.setattr(torch, "compile", fails)
    with pytest.raises(ValueError, match=r"torch.compile fails on ours here \(RuntimeError: no compiler was found\)"):
        modes.ready(tiny(depth=2), "compiled", images(), "ours")


class _Frames:
    """A backend of torch.compile that runs graphs as they are and counts them."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        self.count += 1
        return graph.forward


def _graphs(model: VisionTransformer, images: Images, dynamic: bool | None) -> int:
    torch.compiler.reset()
    frames = _Frames()
    compiled: Any = torch.compile(model, fullgraph=True, dynamic=dynamic, backend=frames)
    with torch.inference_mode():
        for batch in (1, 2, 5, 8):
            x = images(batch)
            torch.testing.assert_close(compiled(x), model(x), atol=1e-4, rtol=1e-4)
    torch.compiler.reset()
    return frames.count


@pytest.fixture(scope="module")
def of_uncompressed(tiny: Tiny, images: Images) -> Callable[[bool | None], int]:
    """Graphs of the uncompressed model, counted once for all methods."""
    return cache(lambda dynamic: _graphs(tiny(depth=2), images, dynamic))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "dynamic"),
    [
        ({}, True),
        ({}, None),
        ({"preset": "paper"}, None),
        ({"recover": True}, True),
        ({"method": "tome", "blocks": (1,)}, None),
        ({"method": "evit"}, True),
    ],
)
def test_batches_are_one_graph_and_no_more_graphs_than_uncompressed(
    options: dict[str, Any], dynamic: bool | None, tiny: Tiny, images: Images, of_uncompressed: Any
) -> None:
    compressed = ttf.apply(tiny(depth=2), **{"blocks": (0, 1), **options})
    assert _graphs(compressed, images, dynamic) <= of_uncompressed(dynamic)
