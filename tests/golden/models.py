"""Reference data of model definitions: reading them, the deterministic weights, and what is compared.

The rules (weights from the names, statistics, tolerances) are those of the README beside the data.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ttf.models.dpt import dpt_hybrid
from ttf.models.lv_vit import lv_vit_s
from ttf.models.mae import mae_vit, mae_vit_h14
from ttf.models.ps_vit import ps_vit_b_14
from ttf.models.segmenter import segmenter_l, segmenter_ti
from ttf.models.swin import swin_l
from ttf.models.t2t_vit import t2t_vit_14, t2t_vit_t_14

DEFAULT = Path(__file__).parents[3] / "shared" / "golden" / "models"
FOLDER = Path(os.environ.get("TTF_GOLDEN_MODELS", DEFAULT))
NARROW = {"img_size": 70, "patch_size": 14, "embed_dim": 160, "depth": 2, "num_heads": 2}
BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "lvvit_s": lv_vit_s,
    "t2t_vit_14": t2t_vit_14,
    "t2t_vit_t_14": t2t_vit_t_14,
    "psvit_b_14": ps_vit_b_14,
    "mae_narrow": lambda: mae_vit(**NARROW),
    "mae_vit_h14": mae_vit_h14,
    "segmenter_ti_mask": segmenter_ti,
    "segmenter_l_mask": segmenter_l,
    "dino_swin_l": swin_l,
    "dpt_hybrid_nyu": dpt_hybrid,
}
LATER: dict[str, str] = {}
INDEXED = {"dino_swin_l"}  # what is not filled is made on the CPU even so
LARGE = 10**8  # weights; such models take a minute, and run where TTF_GOLDEN_LARGE is set
LIMIT = 2e-5  # in standard deviations of the reference
LIMITS = {"dpt": {"normal": 1e-4, "strong": 1e-3}}  # deep fusion adds up the rounding of hundreds of layers
SCALES = {"normal": 0.02, "strong": 0.06}


class Reference:
    """The files of one model: ``golden`` and ``keys`` hold what they say, empty where a file is absent."""

    def __init__(self, stem: str, folder: Path = FOLDER) -> None:
        self.stem, self.folder = stem, folder

    def _read(self, kind: str, stem: str) -> dict[str, Any]:
        path = self.folder / f"{stem}.{kind}.json"
        return json.loads(path.read_text()) if path.is_file() else {}

    @cached_property
    def golden(self) -> dict[str, Any]:
        return self._read("golden", self.stem)

    @property
    def model(self) -> str:
        """Name of the model; that of the file need not be the same."""
        return self.golden.get("model", self.stem)

    @cached_property
    def keys(self) -> dict[str, Any]:
        return self._read("keys", self.stem) or self._read("keys", self.model)

    @property
    def missing(self) -> str | None:
        """Why there is no definition of the model; None where there is one."""
        if self.model in BUILDERS:
            return None
        reasons = [reason for start, reason in LATER.items() if self.model.startswith(start)]
        return f"{self.model}: {reasons[0] if reasons else 'no such model'}"

    def build(self) -> nn.Module:
        """The model, on the meta device where every one of its entries is filled anyway."""
        fixed = self.golden.get("fill_check", {}).get("not_filled", ["unknown"])
        with torch.device("cpu" if fixed and self.model not in INDEXED else "meta"):
            return BUILDERS[self.model]().eval()

    def fill(self, kind: str) -> dict[str, Any]:
        """What the file says of one fill: probes, output."""
        return self.golden if kind == "normal" else self.golden["strong_fill"]

    def limit(self, kind: str) -> float:
        """How far values may be from those of a fill, in standard deviations."""
        own = next((limits for start, limits in LIMITS.items() if self.model.startswith(start)), {})
        return own.get(kind, LIMIT)

    def __repr__(self) -> str:
        return self.stem


def references() -> list[Reference]:
    """All models of the folder; none where it is absent."""
    stems = {re.sub(r"\.(golden|keys)\.json$", "", path.name) for path in FOLDER.glob("*.json")}
    return [Reference(stem) for stem in sorted(stems)]


def draw(name: str, shape: torch.Size, scale: float, salt: str) -> Tensor:
    """Weights of an entry, from nothing but its name."""
    generator = torch.Generator().manual_seed(zlib.crc32((salt + name).encode()))
    value = torch.randn(shape, generator=generator) * scale
    if len(shape) == 1 and name.endswith("weight"):
        return 1 + value
    return 1 + value.abs() if name.endswith("running_var") else value


def fill(model: nn.Module, reference: Reference, kind: str) -> tuple[nn.Module, dict[str, Any]]:
    """The model with the deterministic weights of a fill, and the sums over what was drawn."""
    check, salt = reference.golden["fill_check"], reference.golden.get("fill_salt", "")
    scale = reference.fill(kind).get("fill_scale", SCALES[kind])
    left = {*check["not_filled"], *check["aliases_of"]}
    if next(model.parameters()).is_meta:
        made = {name: entry for name, entry in model.state_dict().items() if not entry.is_meta}
        model = model.to_empty(device="cpu")
        model.load_state_dict(made, strict=False)
    sums: dict[str, Any] = {"filled_tensors": 0, "filled_elements": 0, "sum": 0.0, "sum_sq": 0.0}
    for name, entry in model.state_dict().items():
        if name not in left:
            entry.copy_(draw(name, entry.shape, scale, salt))
            values = entry.double()
            parts = (1, entry.numel(), values.sum().item(), values.square().sum().item())
            sums = {key: sums[key] + part for key, part in zip(sums, parts, strict=True)}
    return model, sums


@contextmanager
def probed(model: nn.Module, probes: dict[str, Any]) -> Iterator[dict[str, Tensor]]:
    """Collects what the probes' modules give while it is open; ``name[1]`` is the second of a tuple."""
    seen: dict[str, Tensor] = {}
    handles = []
    for probe in probes:
        path, index = re.fullmatch(r"(.*?)(?:\[(\d+)\])?", probe).groups()

        def keep(_: nn.Module, __: Any, out: Any, probe: str = probe, index: str | None = index) -> None:
            seen[probe] = _as_map(out) if index is None else out[int(index)]

        handles.append(model.get_submodule(path).register_forward_hook(keep))
    yield seen
    for handle in handles:
        handle.remove()


def _as_map(out: Any) -> Any:
    """Tokens that come with the size of their map, as that map; anything else as it is."""
    sized = isinstance(out, tuple) and len(out) == 2 and isinstance(out[1], tuple)
    return out[0].transpose(1, 2).unflatten(2, out[1]) if sized else out


def draw_input(described: dict[str, Any]) -> Tensor:
    """An input, drawn as the reference says."""
    return torch.randn(described["shape"], generator=torch.Generator().manual_seed(described.get("seed", 0)))


def too_large(reference: Reference) -> str | None:
    """Why the weights of a model are not filled here; None where they are."""
    weights = reference.golden["fill_check"]["filled_elements"]
    path = Path("/proc/meminfo")
    found = re.search(r"MemAvailable:\s+(\d+) kB", path.read_text()) if path.is_file() else None
    if found and 6 * weights > int(found[1]) * 2**10:  # 4 bytes each, and room to work
        return f"{reference.stem} needs {6 * weights / 2**30:.1f} GiB of memory"
    if weights > LARGE and not os.environ.get("TTF_GOLDEN_LARGE"):
        return f"{reference.stem} takes a minute: set TTF_GOLDEN_LARGE=1"
    return None


def check_statistics(found: Tensor, expected: dict[str, Any], limit: float = LIMIT) -> None:
    """Shape, mean, deviation, norm and single values of a tensor within a limit."""
    values, std = found.double().flatten(), expected["std"]
    assert list(found.shape) == expected["shape"]
    assert abs(values.std(correction=0).item() / std - 1) <= limit
    assert abs(values.norm().item() / expected["l2"] - 1) <= limit
    assert abs(values.mean().item() - expected["mean"]) <= limit * std
    singles = {key: values[: len(expected[key])] for key in ("first4", "first16") if key in expected}
    singles |= {"min": values.min(), "max": values.max(), "sample_value": values[expected.get("sample_index", [])]}
    for key, value in singles.items():
        if key in expected:
            difference = value - torch.tensor(expected[key], dtype=torch.float64)
            assert difference.abs().max().item() <= limit * std


def check_sums(found: dict[str, float], expected: dict[str, Any]) -> None:
    """Sum and sum of squares of weights or input."""
    assert abs(found["sum"] - expected["sum"]) <= 0.05
    assert abs(found["sum_sq"] / expected["sum_sq"] - 1) <= 1e-7
