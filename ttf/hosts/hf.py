"""Vision encoders of Hugging Face transformers (4.57 to 5.x): ViT, DeiT, DINOv2, DINOv3, CLIP and SigLIP towers.

Layers changed their names, nesting and return types between versions, so parts are found by what they are called.
Shapes: B batch, N tokens, C channels, H heads, D head dimension, P prefix tokens.
"""

from __future__ import annotations

import inspect
import re
import sys
from typing import Any, NamedTuple

from torch import Tensor, nn
from transformers import PreTrainedModel

from ttf.core.attention import attended_heads
from ttf.core.compressed import PassThrough
from ttf.core.exchange import own_class
from ttf.core.host import NO_MASKS, Attended, Call, Exit, Host, Request, ask
from ttf.core.tokens import Tokens
from ttf.hosts.hf_modules import CompressedEmbeddings, CompressedPooling, CompressedTower
from ttf.methods.base import LayerView

FIRST_NORM = ("layer_norm1", "layernorm_before", "norm1")
SECOND_NORM = ("layer_norm2", "layernorm_after", "norm2")
ATTENTION = ("self_attn", "attention")
QUERY, KEY, VALUE = ("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value")
OUTPUT = ("out_proj", "o_proj")
HEADS, SCALE = ("num_heads", "num_attention_heads"), ("scale", "scaling")
DROPOUT = ("dropout", "attention_dropout", "dropout_prob")
DROPS = ("drop_path", "dropout")
MASKS = ("attention_mask", "causal_attention_mask", "head_mask", "layer_head_mask")
NO_FLEX = (
    "flex_attention masks every layer, and a compressed model takes no mask: load it with attn_implementation='sdpa'"
)
LAYERS = ("encoder.layers", "encoder.layer", "model.layer", "layers", "layer")


class Tower(NamedTuple):
    """One class of encoders.

    Attributes:
        prefix: number of prefix tokens, registers left out.
        norm: the last norm over all tokens, where there is one.
        head: attention that pools all tokens, where there is one.
        registers: whether it has register tokens, as many as its configuration says.
        rotary: whether queries and keys are rotated by place.
    """

    prefix: int
    norm: str | None
    head: str | None = None
    registers: bool = False
    rotary: bool = False


TOWERS = {
    "CLIPVisionTransformer": Tower(1, None),
    "CLIPVisionModel": Tower(1, None),
    "SiglipVisionTransformer": Tower(0, "post_layernorm", "head.attention"),
    "SiglipVisionModel": Tower(0, "post_layernorm", "head.attention"),
    "ViTModel": Tower(1, "layernorm"),
    "DeiTModel": Tower(2, "layernorm"),
    "Dinov2Model": Tower(1, "layernorm"),
    "Dinov2WithRegistersModel": Tower(1, "layernorm", registers=True),
    "DINOv3ViTModel": Tower(1, "norm", registers=True, rotary=True),
}
READ_CLASS_TOKEN = ("ViTForImageClassification", "DeiTForImageClassification", "DeiTForImageClassificationWithTeacher")
QWEN = "Qwen's towers pack images of all sizes into one sequence without a batch axis, and merge 2 x 2 tokens"
BIAS = "adds a relative position bias between all tokens of the grid, and transformed tokens have no row in that table"
REFUSED = {  # names of classes, as a pattern
    "Beit": f"BEiT {BIAS}",
    "Data2VecVision": f"Data2Vec {BIAS}",
    "Siglip2(?!Text)": "SigLIP 2 packs images of several sizes with padding into one batch",
    "Qwen.*Vision": QWEN,
}


def _part(module: Any, names: tuple[str, ...]) -> Any:
    """What a module has under one of some names."""
    return next((getattr(module, name) for name in names if getattr(module, name, None) is not None), None)


def _signature(module: Any) -> inspect.Signature:
    return inspect.signature(own_class(module).forward)  # type: ignore[attr-defined]


def _arguments(module: Any) -> tuple[str, ...]:
    """Names of the arguments of a module behind the first."""
    return tuple(_signature(module).parameters)[2:]


def _returns_tuple(layer: Any) -> bool:
    annotation = _signature(layer).return_annotation
    return str(annotation).lower().startswith(("tuple", "typing.tuple", "typing.union[tuple"))


def _heads(attention: Any, x: Tensor) -> Tensor:
    return x.unflatten(2, (_part(attention, HEADS), -1)).transpose(1, 2)


def _rotation(attention: Any) -> Any:
    """The library's own function that rotates queries and keys; subclasses may come from elsewhere."""
    modules = (sys.modules[cls.__module__] for cls in own_class(attention).__mro__)
    return next(module.apply_rotary_pos_emb for module in modules if hasattr(module, "apply_rotary_pos_emb"))


class HuggingFaceHost(Host):
    """One encoder of transformers, by itself or inside a larger model.

    Args:
        path: of the encoder in the model, "" where it is the model.
        encoder: the encoder itself.
        kinds: names of the classes, own and bases, of the whole model.
    """

    def __init__(self, path: str, encoder: Any, kinds: frozenset[str]) -> None:
        config, self.path, self.kinds = encoder.config, path, kinds
        self.tower = TOWERS[_kind(encoder) or ""]
        self.start = f"{path}." if path else ""
        layers = next(layers for layers in LAYERS if _has(encoder, layers))
        self.container = self.start + layers
        self.registers = config.num_register_tokens if self.tower.registers else 0
        self.patch, self.size = _pair(config.patch_size), _pair(config.image_size)
        layer = encoder.get_submodule(layers)[0]
        self.arguments_of_encoder, self.arguments_of_layer = _arguments(encoder), _arguments(layer)
        self.tuples, self.rotary = _returns_tuple(layer), self.tower.rotary
        self.rotate = _rotation(self._inner(layer)) if self.rotary else None
        self.pools = getattr(encoder, "use_head", True)

    def runs(self, model: nn.Module) -> nn.Module:
        """The encoder."""
        return model.get_submodule(self.path)

    def check(self, model: Any) -> None:
        """Raise ``ValueError`` where a layer lacks a part that every layer of these models has."""
        for layer in model.get_submodule(self.container):
            parts = {"norms": _part(layer, FIRST_NORM) and _part(layer, SECOND_NORM), "attention": self._inner(layer)}
            parts["keys"] = _part(parts["attention"], KEY) if parts["attention"] is not None else None
            lacking = [name for name, part in parts.items() if part is None]
            if lacking:
                raise ValueError(f"{own_class(layer).__name__} has no {lacking[0]} that ttf knows by name")

    def prefix(self, model: Any) -> int:
        """Class, distillation and register tokens."""
        return self.tower.prefix + self.registers

    def class_token(self, model: Any) -> bool:
        """All but SigLIP have one, in front."""
        return self.tower.prefix > 0

    def reads_class_token(self, model: Any) -> bool:
        """The classifiers of ViT and DeiT do; a bare encoder returns all tokens."""
        return not self.kinds.isdisjoint(READ_CLASS_TOKEN)

    def grid(self, model: Any, size: tuple[int, int]) -> tuple[int, int]:
        """See ``Host.grid``."""
        return size[0] // self.patch[0], size[1] // self.patch[1]

    def input_size(self, model: Any) -> tuple[int, int] | None:
        """Of the configuration."""
        return self.size

    def exits(self, model: Any) -> tuple[Exit, ...]:
        """The last norm, the attention that pools, and the encoder, whose outputs become tensors."""
        inner = ((self.tower.norm, "tokens"), (self.tower.head if self.pools else None, "short"))
        tower = Exit(self.path, "mean" if self._takes_mean() else "short", self.prefix(model))
        return (*(Exit(self.start + name, how) for name, how in inner if name is not None), tower)  # type: ignore[arg-type]

    def _takes_mean(self) -> bool:
        """Whether the classifier around the encoder takes the plain mean of its patch tokens."""
        classifies = any(kind.endswith("ForImageClassification") for kind in self.kinds)
        return classifies and self.kinds.isdisjoint(READ_CLASS_TOKEN)

    def others(self, model: Any) -> list[tuple[nn.Module, type]]:
        """The embeddings, and the norm behind those of CLIP."""
        encoder: Any = self.runs(model)
        norm = getattr(encoder, "pre_layrnorm", None)
        return [(encoder.embeddings, CompressedEmbeddings), *([] if norm is None else [(norm, PassThrough)])]

    def exit_class(self, path: str) -> type | None:
        """The encoder is an exit of its own kind, and so is the attention that pools."""
        if path == self.path:
            return CompressedTower
        return CompressedPooling if self.tower.head is not None and path.endswith(self.tower.head) else None

    # parts of a layer

    def _inner(self, layer: Any) -> Any:
        """The module with the projections: the attention layer, or in old versions one inside of it."""
        outer = _part(layer, ATTENTION)
        return getattr(outer, "attention", outer)

    def attentions(self, block: Any) -> tuple[nn.Module, ...]:
        """The attention layer, and the one inside of it."""
        outer, inner = _part(block, ATTENTION), self._inner(block)
        return (outer,) if outer is inner else (outer, inner)

    def names(self, block: Any) -> tuple[str, ...]:
        """Names of the arguments of a layer behind its tokens."""
        return self.arguments_of_layer

    def arguments(self, call: Call, places: Tensor | None) -> Call:
        """As they are, without masks; rotations of the tokens' places where these are not their own."""
        masks = [call[name] for name in MASKS if call.get(name) is not None]
        if masks:
            raise ValueError(NO_MASKS if isinstance(masks[0], Tensor) else NO_FLEX)
        rotation = call.get("position_embeddings")
        if rotation is None or places is None:
            return call
        return {**call, "position_embeddings": tuple(part[places].unsqueeze(1) for part in rotation)}

    def attended(self, attention: Any, x: Tensor, request: Request, call: Call) -> Attended:
        """See ``Host.attended``."""
        if hasattr(attention, "attention"):  # of old versions: projections inside, the output layer here
            inner = ask(attention.attention, x, request, call)
            return inner._replace(x=attention.output(inner.x, x))
        q, k, v = (_heads(attention, _part(attention, names)(x)) for names in (QUERY, KEY, VALUE))
        if self.rotate is not None:
            q, k = self.rotate(q, k, *call["position_embeddings"])
        dropout = _part(attention, DROPOUT) if attention.training else 0.0
        out = _part(attention, OUTPUT) or nn.Identity()
        return attended_heads(q, k, v, _part(attention, SCALE), request, out, dropout)

    def attend(self, block: Any, x: Tensor, request: Request, call: Call) -> LayerView:
        """x + drop(scale(attention(norm(x))))."""
        attended = ask(_part(block, ATTENTION), _part(block, FIRST_NORM)(x), request, call)
        x = _dropped(block, "layer_scale1", attended.x) + x
        return attended.view(x, request.prefix, _part(block, SECOND_NORM)(x) if request.wanted.normed else None)

    def feed_forward(self, block: Any, x: Tensor) -> Tensor:
        """x + drop(scale(mlp(norm(x))))."""
        normed = _part(block, SECOND_NORM)(x)
        if hasattr(block, "intermediate"):  # of old versions, whose output layer adds the residual
            return block.output(block.intermediate(normed), x)
        return _dropped(block, "layer_scale2", block.mlp(normed)) + x

    def unpack(self, out: Any) -> Tensor:
        """Some versions return tuples."""
        return out if isinstance(out, Tensor) else out[0]

    def pack(self, block: Any, out: Any) -> Any:
        """As the layer's own version does.

        Raises:
            ValueError: reentrant gradient checkpointing, which loses the gradients of ``Tokens``.
        """
        if isinstance(out, Tokens) and block.training and _reentrant(block):
            raise ValueError(
                "gradient checkpointing of a compressed model needs use_reentrant=False: call "
                'model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})'
            )
        return (out,) if self.tuples else out


def _reentrant(block: Any) -> bool:
    if not getattr(block, "gradient_checkpointing", False):
        return False
    return getattr(block._gradient_checkpointing_func, "keywords", {}).get("use_reentrant", True)


def _dropped(block: Any, scale: str, out: Tensor) -> Tensor:
    """What a layer does to a branch before it adds it."""
    out = getattr(block, scale)(out) if hasattr(block, scale) else out
    drop = _part(block, DROPS)
    return out if drop is None else drop(out)


def _kinds(module: nn.Module) -> frozenset[str]:
    return frozenset(cls.__name__ for cls in own_class(module).__mro__)


def _kind(module: nn.Module) -> str | None:
    """Which of ``TOWERS`` a module is, subclasses included."""
    return next((cls.__name__ for cls in own_class(module).__mro__ if cls.__name__ in TOWERS), None)


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)


def _has(module: nn.Module, path: str) -> bool:
    try:
        return isinstance(module.get_submodule(path), nn.ModuleList)
    except AttributeError:
        return False


def _refuse(model: nn.Module) -> None:
    """Raise ``ValueError`` for encoders that are known and cannot be entered, with the reason."""
    for module in model.modules():
        name = own_class(module).__name__
        why = next((why for pattern, why in REFUSED.items() if re.match(pattern, name)), None)
        if why is not None:
            raise ValueError(f"{name} cannot be compressed: {why}")


def host(model: nn.Module) -> Host:
    """The host of a model of transformers that has one vision encoder, or of a module around such a model.

    Raises:
        ValueError: it has none that is known, or more than one; known ones that cannot be entered are refused by name.
    """
    _refuse(model)
    towers = [(path, module) for path, module in model.named_modules() if _kind(module)]
    # versions below 5.5 wrap the encoder in a class of the same name as later ones' encoder: the inner one counts
    towers = [(path, module) for path, module in towers if any(_has(module, layers) for layers in LAYERS)]
    if len(towers) != 1:
        name, known = own_class(model).__name__, ", ".join(TOWERS)
        raise ValueError(f"{name} has {len(towers)} vision encoders that ttf knows ({known}), not one")
    whole = next((module for module in model.modules() if isinstance(module, PreTrainedModel)), model)
    return HuggingFaceHost(*towers[0], _kinds(whole))
