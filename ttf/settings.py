"""Settings of the commands: types and ranges; ``ttf.unread`` has whether something reads them.

A dataclass a command, with the keys of its config that are no group. Imports neither torch nor timm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf

from ttf.checks import FEWEST_ROUNDS, Command, count, listed, number, part_of_name
from ttf.unread import check_command, check_compression, key_of

LARGEST_TAU = 1e6  # the softmax is a maximum long before; from about 1e38 on it is not a number


@dataclass(frozen=True)
class Knobs(Command):
    """What evaluation and training share; see ``configs/eval.yaml`` for what each says."""

    name: str | None = None
    title: str | None = None
    ratio: float = number(0.7, "the share of tokens to keep and must be in (0, 1]", above=0, high=1)
    budget: float | None = number(
        None, "the share of the multiply-accumulates that may be left and must be in (0, 1]", above=0, high=1
    )
    kappa: float | None = number(None, "the gate threshold (Eq. 3), in [-1, 1]", low=-1, high=1)
    tau: float | None = number(
        None, "the inverse temperature (Eq. 5) and must be above 0, at most 1e6", above=0, high=LARGEST_TAU
    )
    blocks: Sequence[int] | None = listed()
    recover: bool | Literal["nearest", "transpose"] = False
    checkpoint: str | None = None
    finetuned: bool = False


@dataclass(frozen=True)
class Evaluation(Knobs):
    """Of ``configs/eval.yaml``."""

    recover_at: str | None = None
    windows: str | None = None
    shift: str | None = None
    reduce_after: str | None = None
    on_missing: Literal["stop", "skip"] = "stop"
    limit: int | None = count(None, "a number of images")
    skip: int = count(0, "a number of images", least=0)
    seed: int = number(0, "a number from 0 to 2**31", low=0, high=2**31)
    batch_size: int = count(50, "images that go through the model together")
    workers: int = count(0, "processes that read images", least=0)
    on_bad_image: Literal["stop", "skip"] = "stop"
    device: str = "auto"
    device_map: str | Mapping[str, int | str] | None = None
    offload: str | None = None
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    out: str | None = None
    force: bool = False


@dataclass(frozen=True)
class Benchmark(Evaluation):
    """Of ``configs/benchmark.yaml``."""

    batch: Sequence[int] | Literal["sweep"] | None = count(None, "images of a forward pass")
    modes: Sequence[Literal["eager", "compiled", "autotune", "graphs", "onnx"]] = listed(("eager",))
    rounds: int = number(9, f"a number of rounds, and a median needs at least {FEWEST_ROUNDS}", low=FEWEST_ROUNDS)
    seconds: float | None = number(None, "a time, above 0", above=0)
    parts: Sequence[Literal["tower", "prefill", "answer"]] | None = listed()
    pixels: Sequence[int] | None = count(None, "sides of images")
    experiments: Sequence[str] | None = listed()
    table: str | None = None
    benchmark: str | None = None
    csv: str | None = None
    jobs: int | None = count(None, "processes that compile side by side")
    minutes: float = number(7, "a time, above 0", above=0)


@dataclass(frozen=True)
class Search(Evaluation):
    """Of ``configs/search.yaml``."""

    images: int = count(128, "a number of images", least=8)
    evaluations: int = count(200, "a number of schedules")
    patience: int | None = count(None, "a number of schedules")
    compare: Literal["kl", "error"] = "kl"
    start: Sequence[str] | None = listed()
    memory: int = count(512, "MiB that are kept of former runs")


@dataclass(frozen=True)
class Picture(Evaluation):
    """Of ``configs/visualize.yaml``, ``masks.yaml`` and ``answers.yaml``."""

    pick: Sequence[int] | None = count(None, "positions in the shuffle", least=0)
    ways: Sequence[str] | None = listed()
    figures: str = "figures"
    figure: str = "figure.png"


@dataclass(frozen=True)
class Matrices(Evaluation):
    """Of ``configs/matrices.yaml``."""

    block: int = count(3, "the number of a block", least=0)
    pick: int = count(2, "a position in the shuffle", least=0)
    columns: Literal["sorted", "raster"] = "sorted"
    suffix: str = part_of_name()
    figures: str = "figures"


@dataclass(frozen=True)
class Costs(Evaluation):
    """Of ``configs/roofline.yaml`` and ``configs/operators.yaml``."""

    batch: int = count(16, "images of a forward pass")
    pixels: int | None = count(None, "the side of the images")
    rounds: int = count(7, "a number of rounds")
    threads: int | None = count(None, "a number of threads")
    csv: str = "costs.csv"


@dataclass(frozen=True)
class Contract(Evaluation):
    """Of ``configs/contract.yaml``."""

    dtypes: Sequence[Literal["float32", "float16", "bfloat16"]] = listed(("float32",))
    cases: Literal["many", "few"] = "many"
    largest: int | None = count(None, "a number of tokens")
    jobs: int | None = count(None, "processes that compile side by side")
    csv: str = "contract.csv"


@dataclass(frozen=True)
class Demo(Evaluation):
    """Of ``configs/demo.yaml``."""

    demo_folder: str = "demo"
    figure_images: int = count(3, "images of the figure")


@dataclass(frozen=True)
class Finetune(Knobs):
    """Of ``configs/finetune.yaml``."""

    output: str = "training"
    half: bool = False
    pretrained: bool = True
    device: Literal["auto", "cpu"] = "auto"


@dataclass(frozen=True)
class Rows(Command):
    """Of ``configs/sweep.yaml``, ``table.yaml``, ``figure.yaml`` and ``report.yaml``."""

    table: str | None = None
    figure: str | None = None
    scale: str = "tiny"
    list: bool = False
    overrides: Sequence[str] = ()
    force: bool = False
    publish: bool = False
    models: Sequence[str] | None = listed()
    suffix: str = part_of_name()
    compare: bool = False


@dataclass(frozen=True)
class App(Command):
    """Of ``configs/app.yaml``."""

    host: str = "127.0.0.1"
    port: int = number(7860, "a port from 0 to 65535", low=0, high=65535)
    models: Sequence[str] | None = listed()
    device: str = "auto"


COMMANDS: dict[str, type[Command]] = {
    "eval": Evaluation,
    "benchmark": Benchmark,
    "matrices": Matrices,
    "contract": Contract,
    "demo": Demo,
    "search": Search,
    "finetune": Finetune,
    "app": App,
    **dict.fromkeys(("visualize", "masks", "answers"), Picture),
    **dict.fromkeys(("roofline", "operators"), Costs),
    **dict.fromkeys(("sweep", "table", "figure", "report"), Rows),
}


@dataclass(frozen=True)
class Throughput(Command):
    """The group ``throughput``."""

    batch_size: int = count(16, "images of a forward pass", least=0)
    rounds: int = count(7, "a number of rounds")


@dataclass(frozen=True)
class Mixing(Command):
    """The group ``mixing``."""

    mixup_alpha: float = number(0.8, "a concentration, at least 0", low=0)
    cutmix_alpha: float = number(1.0, "a concentration, at least 0", low=0)
    images: int = count(256, "images that share a draw")


@dataclass(frozen=True)
class Objective(Command):
    """What the group ``objective`` may hold."""

    label_smoothing: float = number(0.0, "shared by all classes, from 0 to 1", low=0, high=1)
    alpha: float = number(0.5, "the weight of the teacher, from 0 to 1", low=0, high=1)
    temperature: float = number(1.0, "a temperature, above 0", above=0)


@dataclass(frozen=True)
class Calibration(Command):
    """The group ``method.calibrate``; its other values are checked by the method."""

    images: int = count(64, "a number of images")


GROUPS: dict[str, type[Command]] = {
    "throughput": Throughput,
    "mixing": Mixing,
    "objective": Objective,
    "method.calibrate": Calibration,
}
NOWHERE = ("weights", "downloads")  # places that may be null
OPTIONAL = ("encoder", "mixing", "augment", "experiment")  # parts that may be null
# parts of configs that are read as mappings
MAPPINGS = (
    *("throughput", "train", "objective", "groups", "paths", "logger", "method", "schedule"),
    *("encoder", "mixing", "augment", "task.data", "task.evaluation", "model.network", "data.train", "data.test"),
)


def _check_values(kind: type[Command], name: str, node: Any) -> None:
    """Raise ``ValueError`` for what a config says otherwise than its dataclass; other keys are groups."""
    values = {str(key): node[key] for key in node if key in kind.__dataclass_fields__}
    plain: Any = OmegaConf.to_container(OmegaConf.create(values), resolve=True)
    try:
        kind(**plain)
    except ValueError as error:
        raise ValueError(f"{name}{error}") from None


def _check_places(paths: DictConfig) -> None:
    for name in paths:
        value = paths[name]
        if value is None and name in NOWHERE:
            continue
        if not isinstance(value, str) or not value:
            raise ValueError(f"paths.{name!s} must be the path of a folder, got {value!r}")


def _check_parts(cfg: DictConfig, given: Sequence[str]) -> None:
    """Raise ``ValueError`` where an override took away, or put something else in place of, a part of a config."""
    for one in given:
        key = key_of(one)
        if one.startswith("~") and key.isidentifier() and key not in cfg and key not in OPTIONAL:
            raise ValueError(f"{key} is needed: leave {one} out")
        if one.endswith("={}") and not one.startswith("+"):
            raise ValueError(f"{one} would have no effect: it adds nothing to what is there")
    for name in MAPPINGS:
        path, _, last = name.rpartition(".")
        node = OmegaConf.select(cfg, path) if path else cfg
        if not isinstance(node, DictConfig) or last not in node or (node[last] is None and name in OPTIONAL):
            continue
        if not isinstance(node[last], DictConfig):
            raise ValueError(f"{name} is a group of settings, got {node[last]!r}: leave {name} out")


def check(cfg: DictConfig, given: Sequence[str] = (), command: str = "eval") -> None:
    """Check a composed config before anything is loaded.

    Args:
        cfg: of any script.
        given: overrides of the command line.
        command: its name, that of its config.

    Raises:
        ValueError: a value of another type or out of its range, one that has no effect, or one that no script reads.
    """
    _check_parts(cfg, given)
    if command == "search" and "_target_" in cfg.method:  # which has no name for the file
        raise ValueError("this method brings its own numbers of tokens, none are left to search: choose another")
    _check_values(COMMANDS.get(command, Evaluation), "", cfg)
    for group, kind in GROUPS.items():
        node = OmegaConf.select(cfg, group)
        if node is not None:
            _check_values(kind, f"{group}.", node)
    if "paths" in cfg:
        _check_places(cfg.paths)
    check_command(command, Evaluation.__dataclass_fields__, cfg, given)
    if command == "search" and cfg.budget is None:
        raise ValueError("budget is missing: say what share of the multiply-accumulates may be left, budget=0.65")
    if "method" in cfg and "schedule" in cfg:
        check_compression(cfg, given)
