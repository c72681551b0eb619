"""OpenMMLab beside this project (extra "openmmlab"): mmcv without compiled operators, and mmsegmentation's Segmenter.

Which packages, and why: docs/decisions.md.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from torch import Tensor

OPERATORS = "mmcv._ext"
TRANSPOSED = ("decoder.proj_patch", "decoder.proj_classes")
PLACES = {"encoder.blocks": "backbone.layers", "decoder.blocks": "decode_head.layers"}
# names of rstrudel/segmenter and of ttf.models.segmenter -> names of mmsegmentation
INSIDE_A_BLOCK = {
    "norm1.": "ln1.",
    "norm2.": "ln2.",
    "attn.qkv.weight": "attn.attn.in_proj_weight",
    "attn.qkv.bias": "attn.attn.in_proj_bias",
    "attn.proj.": "attn.attn.out_proj.",
    "mlp.fc1.": "ffn.layers.0.0.",
    "mlp.fc2.": "ffn.layers.1.",
}
ELSEWHERE = {
    "encoder.cls_token": "backbone.cls_token",
    "encoder.pos_embed": "backbone.pos_embed",
    "encoder.patch_embed.proj.": "backbone.patch_embed.projection.",
    "encoder.norm.": "backbone.ln1.",
    "decoder.cls_emb": "decode_head.cls_emb",
    "decoder.proj_dec.": "decode_head.dec_proj.",
    "decoder.proj_patch": "decode_head.patch_proj.weight",
    "decoder.proj_classes": "decode_head.classes_proj.weight",
    "decoder.decoder_norm.": "decode_head.decoder_norm.",
    "decoder.mask_norm.": "decode_head.mask_norm.",
}


class _Absent(ModuleType):
    """Stands in for mmcv's compiled operators: each fails when it is called, and says which one."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)

        def absent(*_: Any, **__: Any) -> Any:
            raise RuntimeError(
                f"mmcv's compiled operator {name} is not installed: docs/decisions.md says how to get it"
            )

        return absent


def prepare() -> bool:
    """Make mmcv, mmseg and mmdet importable without compiled operators; compiled ones are used if they are there.

    Call it before mmcv is imported.

    Returns:
        Whether the operators are compiled.

    Raises:
        ValueError: mmcv is not installed.
    """
    if find_spec("mmcv") is None:
        raise ValueError("OpenMMLab is not installed: make setup EXTRAS=dev,openmmlab")
    if OPERATORS in sys.modules:
        return not isinstance(sys.modules[OPERATORS], _Absent)
    if "mmcv" not in sys.modules and _compiled():
        return True
    stand_in = _Absent(OPERATORS)
    stand_in.__spec__ = ModuleSpec(OPERATORS, None)
    sys.modules[OPERATORS] = stand_in
    return False


def _compiled() -> bool:
    """Whether mmcv has its operators, without importing it."""
    spec = find_spec("mmcv")
    places = list(spec.submodule_search_locations or ()) if spec else []
    return PathFinder.find_spec(OPERATORS, places) is not None


def _renamed(name: str) -> str:
    """mmsegmentation's name of a tensor of the official Segmenter."""
    block = re.fullmatch(r"(encoder\.blocks|decoder\.blocks)\.(\d+)\.(.+)", name)
    start, rest, table = ("", name, ELSEWHERE)
    if block:
        start, rest, table = f"{PLACES[block[1]]}.{block[2]}.", block[3], INSIDE_A_BLOCK
    found = next((old for old in table if rest.startswith(old)), None)
    if found is None:
        raise ValueError(f"{name} is no tensor of a Segmenter with a mask decoder")
    return start + table[found] + rest.removeprefix(found)


def to_mmsegmentation(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An official Segmenter's state dict under mmsegmentation's names, for ``EncoderDecoder``.

    mmsegmentation's model needs ``patch_bias=True``, ``interpolate_mode="bilinear"`` and LayerNorm eps 1e-5, which are
    not its defaults. The encoder's unused classifier is left out.

    Raises:
        ValueError: a name that a Segmenter does not have.
    """
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("encoder.head.")}
    return {_renamed(name): tensor.t().contiguous() if name in TRANSPOSED else tensor for name, tensor in kept.items()}


def from_mmsegmentation(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The way back, for ``load_strictly`` into a ``Segmenter``.

    Files that mmsegmentation trained with its own configs (eps 1e-6 in the backbone, bicubic positions) are another
    function of these weights; official files that were converted are the same one.

    Args:
        tensors: state dict of an ``EncoderDecoder`` with a ``SegmenterMaskTransformerHead``.
        own: state dict of the model; its encoder's unused classifier is kept.
    """
    names = {_renamed(name): name for name in own if not name.startswith("encoder.head.")}
    given = {names.get(name, name): tensor for name, tensor in tensors.items()}
    mapped = {name: tensor.t().contiguous() if name in TRANSPOSED else tensor for name, tensor in given.items()}
    return {**{name: tensor for name, tensor in own.items() if name.startswith("encoder.head.")}, **mapped}
