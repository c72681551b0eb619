"""Golden cases: reading them, and running one block of theirs."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ttf.core.compressed import CompressedAttention
from ttf.core.exchange import exchange, is_exchanged
from ttf.core.host import Attended, Request
from ttf.core.plan import Place, Plan
from ttf.hosts.timm_vit import TimmViT
from ttf.methods import LayerView, Method
from ttf.methods.top_k import TopK
from ttf.ops.attention import Wanted
from ttf.ops.reduction import Reduction
from ttf.schedule import Counts

DEFAULT = Path(__file__).parents[3] / "shared" / "golden"
NAMED = os.environ.get("TTF_GOLDEN_METHODS")
FOLDERS = [Path(name) for name in NAMED.split(":")] if NAMED else [DEFAULT / "methods", DEFAULT / "methods_new"]
WEIGHT = {"rtol": 0.0, "atol": 2e-5}  # W, scores, sizes
TOKEN = {"rtol": 0.0, "atol": 1e-4}  # tokens and block outputs


@cache
def _tensors(path: Path) -> dict[str, Tensor]:
    return load_file(path)


class Case:
    """One case of a file: ``case["x"]`` is a tensor, ``case.settings`` its settings, ``case.kind`` its name's word."""

    def __init__(self, name: str, settings: dict[str, Any], path: Path) -> None:
        self.path, self.name, self.settings = path, name, settings
        self.method, self.kind = path.stem, re.match(r"[a-z]+", name)[0]

    def __getitem__(self, tensor: str) -> Tensor:
        return _tensors(self.path)[f"{self.name}/{tensor}"]

    def __contains__(self, tensor: str) -> bool:
        return f"{self.name}/{tensor}" in _tensors(self.path)

    def get(self, tensor: str) -> Tensor | None:
        """A tensor of the case, or None where it has no such."""
        return _tensors(self.path).get(f"{self.name}/{tensor}")

    def group(self, prefix: str) -> dict[str, Tensor]:
        """All tensors below ``prefix/``."""
        start = f"{self.name}/{prefix}/"
        return {key[len(start) :]: tensor for key, tensor in _tensors(self.path).items() if key.startswith(start)}

    def __repr__(self) -> str:
        return f"{self.method}-{self.name}"


def all_cases() -> list[Case]:
    """Every case of every file in the folders; none where these are absent."""
    found = []
    for path in sorted(path for folder in FOLDERS for path in folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            settings = json.loads((file.metadata() or {}).get("cases", "{}"))
        found += [Case(name, values, path) for name, values in settings.items()]
    return found


def block_of(case: Case) -> Any:
    """The block of a case with its weights: LayerNorm eps 1e-5, MLP ratio 2, qkv bias."""
    weights = case.group("weights")
    dim, hidden = weights["attn.proj.weight"].shape[0], weights["mlp.fc1.weight"].shape[0]
    norm: Any = partial(nn.LayerNorm, eps=1e-5)
    block = Block(dim, case.settings["heads"], hidden / dim, qkv_bias=True, norm_layer=norm)
    block.load_state_dict(weights)
    return block.eval()


def attend(block: Any, x: Tensor, sizes: Tensor | None, wanted: Wanted, prefix: int) -> LayerView:
    """The first half of a timm block, as in a compressed model."""
    host = TimmViT()
    if not is_exchanged(block.attn):
        exchange(block.attn, CompressedAttention)
    block.attn.ttf_place = Place(Plan(TopK(), Counts(()), host, prefix, class_token=True))
    return host.attend(block, x, Request(sizes, wanted, prefix), {})


def enter(
    block: Any, x: Tensor, sizes: Tensor | None, method: Method, keep: int
) -> tuple[LayerView, Reduction, Tensor]:
    """The first half of a timm block whose tokens are reduced at its entrance: view, Reduction, tokens."""
    host, found = TimmViT(), list[tuple[LayerView, Reduction]]()

    def reduce(statistics: Attended) -> tuple[Tensor, Reduction]:
        view = replace(statistics.view(x, 1), sizes=sizes)
        y, reduction = method(view, keep)
        found.append((view, reduction))
        return y, reduction

    exchange(block.attn, CompressedAttention)
    block.attn.ttf_place = Place(Plan(method, Counts(()), host, 1, class_token=True))
    y = host.enter(block, x, Request(sizes, method.wanted, 1), {}, reduce)
    return *found[0], y


def feed_forward(block: Any, x: Tensor) -> Tensor:
    """The second half."""
    return TimmViT().feed_forward(block, x)


@torch.inference_mode()
def run_block(
    case: Case, method: Method, keep: int, sizes: Tensor | None = None, prefix: int = 1, **view_options: Any
) -> tuple[LayerView, Reduction, Tensor, Tensor]:
    """The block of a case with a method between its halves: view, reduction, reduced tokens, block output.

    ``sizes``: (B, N) of the tokens that come in. ``view_options``: more fields of the view (block, grid).
    """
    block = block_of(case)
    view = attend(block, case["x_in"], sizes if method.scaling else None, method.wanted, prefix)
    view = replace(view, sizes=sizes, **view_options)
    reduction = method.reduce(view, keep)
    reduced = reduction.down(view.x)
    return view, reduction, reduced, feed_forward(block, reduced)
