"""Narrow Swins against mmdet's: ours, ours with every token at its place, and mmdet's own in the same way."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from tests.golden.dense import Cases, Files
from tests.golden.models import check_statistics, check_sums, draw, draw_input
from tests.hosts.windows import all_at_their_places
from ttf.models.swin import SwinTransformer, from_mmdet

Json = dict[str, Any]
Context = Callable[[nn.Module, int], Any]


def _weights(golden: Json, run: Json) -> dict[str, Tensor]:
    """What the reference fills mmdet's entries with."""
    left = golden["fill_check"][str(run["scale"])]["not_filled"]
    shapes = {name: torch.Size(shape) for name, shape in golden["state_dict"].items() if name not in left}
    tensors = {name: draw(name, shape, run["scale"], golden["fill_salt"]) for name, shape in shapes.items()}
    sums = {"sum": sum(t.double().sum().item() for t in tensors.values())}
    sums["sum_sq"] = sum(t.double().square().sum().item() for t in tensors.values())
    check_sums(sums, golden["fill_check"][str(run["scale"])])
    return tensors


def _ours(golden: Json, run: Json) -> nn.Module:
    known = golden["settings"]
    model = SwinTransformer(
        known["embed_dims"], known["depths"], known["num_heads"], known["window_size"], known["out_indices"],
        known["mlp_ratio"],
    )  # fmt: skip
    _load(model, from_mmdet(_weights(golden, run)))
    return model.eval()


def _theirs(golden: Json, run: Json) -> nn.Module:
    import ttf.openmmlab

    ttf.openmmlab.prepare()
    from mmdet.models.backbones.swin import SwinTransformer as Theirs

    known = {name: value for name, value in golden["settings"].items() if name != "layer_norm_eps"}
    model = Theirs(**known)
    _load(model, _weights(golden, run))
    model.eval()  # which returns nothing there
    return model


def _load(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    fixed = {name for name in model.state_dict() if name.endswith("relative_position_index")}
    assert tensors.keys() == model.state_dict().keys() - fixed
    model.load_state_dict(tensors, strict=False)


def _path(probe: str) -> tuple[str, bool]:
    """A probe's module in our definition, and whether it is the branch before the residual."""
    branch = re.fullmatch(r"stages\.\d+\.blocks\.\d+\.attn", probe) is not None
    path = probe.replace("stages.", "layers.").removesuffix(".attn")
    return (f"{path}.drop_path" if branch else path), branch


@contextmanager
def _probed(model: nn.Module, probes: Json) -> Iterator[dict[str, Tensor]]:
    seen: dict[str, Tensor] = {}
    handles = []
    for probe in probes:
        path, branch = _path(probe)

        def keep(_: nn.Module, __: Any, out: Any, probe: str = probe, branch: bool = branch) -> None:
            if not (branch and probe in seen):  # the second call is the feed-forward branch
                seen[probe] = out[0] if isinstance(out, tuple) else out

        handles.append(model.get_submodule(path).register_forward_hook(keep))
    yield seen
    for handle in handles:
        handle.remove()


@torch.no_grad()
def _probes(golden: Json, run: Json) -> None:
    model = _ours(golden, run)
    with _probed(model, run["probes"]) as seen:
        model(draw_input(run["input"]))
    for probe, expected in run["probes"].items():
        check_statistics(seen[probe], expected)


@torch.no_grad()
def _outputs(golden: Json, run: Json, build: Callable[[Json, Json], nn.Module], context: Context) -> None:
    model, x = build(golden, run), draw_input(run["input"])
    check_sums({"sum": x.double().sum().item(), "sum_sq": x.double().square().sum().item()}, run["input"])
    with context(model, golden["settings"]["window_size"]):
        maps = model(x)
    for found, expected in zip(maps, run["outputs"], strict=True):
        check_statistics(found, expected)


def cases(files: Files) -> Cases:
    """Every run: all probes, the maps, and the maps where the third stage runs on tokens that know their places."""
    golden = files.json("golden")
    whole: Context = lambda *_: nullcontext()  # noqa: E731
    for number, run in enumerate(golden["runs"]):
        yield f"{number}-probes", partial(_probes, golden, run)
        yield f"{number}-maps", partial(_outputs, golden, run, _ours, whole)
        yield f"{number}-places", partial(_outputs, golden, run, _ours, all_at_their_places)
        if find_spec("mmdet"):
            yield f"{number}-places-of-mmdet", partial(_outputs, golden, run, _theirs, all_at_their_places)
