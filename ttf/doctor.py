"""What a machine has for this project, and what each missing thing costs."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from ttf.building import build
from ttf.config_store import model, models
from ttf.measure.provenance import device_name
from ttf.models.download import published
from ttf.models.weights import EMBEDDED, at_hand
from ttf.ops import native
from ttf.ops.native.build import library

CORE = (
    "torch",
    "torchvision",
    "timm",
    "hydra-core",
    "omegaconf",
    "wandb",
    "pandas",
    "matplotlib",
    "rich",
    "safetensors",
    "pillow",
)
OPTIONAL = {
    "onnx": "ONNX export",
    "onnxscript": "ONNX export",
    "onnxruntime": "running exported models",
    "onedl-mmsegmentation": "mmsegmentation's models beside ours",
    "hydra-joblib-launcher": "parallel sweeps (hydra/launcher=joblib)",
    "hydra-submitit-launcher": "sweeps on SLURM (hydra/launcher=submitit_slurm)",
}
GIB = 2**30
LITTLE_SPACE = 2 * GIB


@dataclass(frozen=True)
class Finding:
    """One thing looked for.

    Attributes:
        what: its name.
        found: what is there, or None.
        cost: what does not work without it.
        remedy: how to get it.
    """

    what: str
    found: str | None
    cost: str = ""
    remedy: str = ""


def _package(name: str, cost: str, remedy: str) -> Finding:
    try:
        return Finding(name, version(name))
    except PackageNotFoundError:
        return Finding(name, None, cost, remedy)


def _dataset(cfg: DictConfig) -> Finding:
    try:
        data = build(cfg.task.data.imagenet)
    except ValueError as error:
        cost = "task=cls on all models but vit_mini: no accuracy (parameters, GMACs and speed still work)"
        return Finding("ImageNet", None, cost, str(error))
    return Finding("ImageNet", f"{len(data)} images in {data.folder}")


def _remedy(model: DictConfig, downloads: str) -> str:
    if model.weights == "transformers":
        return "network.name=NAME on the hub, downloaded at first use; offline: a folder of save_pretrained"
    if model.weights == "embedded":
        trains = model.get("trained_by", "mini/cls")
        return f"ttf finetune experiment={trains} writes it; copy it to {EMBEDDED}"
    by_hand = "checkpoint=FILE with timm's keys"
    if model.weights == "official":
        by_hand = published(model.name).by_hand(downloads)
    return f"downloaded at first use; offline: {by_hand}"


def _weights(name: str, model: DictConfig, local: str | None, downloads: str) -> Finding:
    found = at_hand(model, local, downloads)
    if found is not None:
        return Finding(f"weights {name}", str(found))
    cost = "make demo" if model.weights == "embedded" else f"model={name} without a connection"
    return Finding(f"weights {name}", None, cost, _remedy(model, downloads))


def _accelerator() -> Finding:
    if torch.cuda.is_available():
        return Finding("GPU", device_name(torch.device("cuda")))
    return Finding("GPU", None, "speed: everything runs on the CPU", f"now: {device_name(torch.device('cpu'))}")


def _operators() -> Finding:
    if native.loaded():
        return Finding("compiled operators", str(library()))
    cost = "speed on a CPU: the plain operators run, the same answers a few percent slower"
    return Finding("compiled operators", None, cost, "a C++ compiler, then python -m ttf.ops.native; not TTF_NATIVE=0")


def _space(cfg: DictConfig) -> Finding:
    free = shutil.disk_usage(cfg.paths.root).free
    words = f"{free / GIB:.0f} GiB free"
    return Finding("disk", words) if free > LITTLE_SPACE else Finding("disk", None, "rows and weights", words)


def examine(cfg: DictConfig) -> list[Finding]:
    """Look for packages, device, disk space, data and weights. ``cfg``: the composed config of ``scripts/eval.py``."""
    return [
        *(_package(name, "everything", "make setup") for name in CORE),
        *(_package(name, cost, "make setup EXTRAS=dev,openmmlab") for name, cost in OPTIONAL.items()),
        _accelerator(),
        _operators(),
        _space(cfg),
        _dataset(cfg),
        *(_weights(name, model(name), cfg.paths.weights, cfg.paths.downloads) for name in sorted(models())),
    ]


def _line(name: str, findings: list[Finding], shown: int = 6) -> str:
    """How many of some things are there, and the names of the others."""
    lacking = [finding.what.removeprefix("weights ") for finding in findings if finding.found is None]
    more = f", ... ({len(lacking)})" if len(lacking) > shown else ""
    missing = f"; missing: {', '.join(lacking[:shown])}{more}" if lacking else ""
    return f"{name:10} {len(findings) - len(lacking)} of {len(findings)}{missing}"


def summary(findings: list[Finding]) -> str:
    """What matters in a few lines: can the main job run, and what cannot."""
    weights = [one for one in findings if one.what.startswith("weights ")]
    packages = [one for one in findings if one.what in CORE]
    further = [one for one in findings if one.what in OPTIONAL]
    single = [one for one in findings if one not in (*weights, *packages, *further)]
    ready = all(one.found for one in packages)
    lines = [_line("packages", packages), _line("optional", further), _line("weights", weights)]
    lines += [f"{one.what:10} {one.found or f'missing: {one.cost}'}" for one in single]
    verdict = "the main job (make demo) can run" if ready else "the main job (make demo) cannot run: make setup"
    return "\n".join([verdict, *lines])


def print_findings(findings: list[Finding]) -> None:
    """Print a summary, then a table: what is there, what is missing, what that costs and how to get it."""
    print(summary(findings), end="\n\n")
    table = Table(title="ttf doctor", show_lines=True)
    for name in ("what", "found", "without it", "remedy"):
        table.add_column(name, overflow="fold")
    for f in findings:
        table.add_row(f.what, f.found or "[bold]missing[/bold]", f.cost, f.remedy)
    Console().print(table)
