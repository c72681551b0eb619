"""``ttf::summed_attention`` and ``ttf::transform``: the two operators of a reducing layer, as torch knows them.

And ``ttf::attention``, attention with a number per key, for the layers behind it: on a GPU, where torch's own is slow
with a mask.

Defined here once: arguments, shapes without values, multiply-accumulates, gradients (by the plain operators) and what
runs. Shapes: B batch, H heads, N tokens, n tokens that take part, D head dimension, C channels. Imports torch alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ttf.ops import attention, native, plain
from ttf.ops.backends import Runner, runner
from ttf.ops.fused import TransformReduction
from ttf.ops.kernels import dispatch
from ttf.ops.plain import Answer, Reading
from ttf.ops.transform import transformed_sizes

KEYED = "attention(Tensor q, Tensor k, Tensor v, Tensor bias, float scale) -> Tensor"
ATTENTION = "summed_attention(Tensor q, Tensor k, Tensor v, Tensor? bias, float scale, int first) -> (Tensor, Tensor)"
TRANSFORM = (
    "transform(Tensor x, Tensor features, Tensor scores, Tensor? mass, SymInt keep, int prefix, "
    "float kappa, float tau, bool mask, bool redundancy) -> (Tensor, Tensor, Tensor)"
)

LIBRARY = torch.library.Library("ttf", "DEF")
LIBRARY.define(KEYED, tags=(torch.Tag.pt2_compliant_tag,))
for schema in (ATTENTION, TRANSFORM):
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.define(f"native_{schema}")  # what C++ implements, on a CPU
native.load()


def check_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, first: int) -> None:
    """Raise ``ValueError`` unless the arguments of ``summed_attention`` fit together."""
    if q.ndim != 4 or not q.shape == k.shape == v.shape:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (q, k, v))
        raise ValueError(f"q, k and v must have one shape (B, H, N, D), got {shapes}")
    batch, _, tokens, _ = q.shape
    if bias is not None and bias.shape != (batch, 1, 1, tokens):
        raise ValueError(f"the bias must have the shape {(batch, 1, 1, tokens)}, got {tuple(bias.shape)}")
    if not 0 <= first <= tokens:
        raise ValueError(f"first must be from 0 to {tokens}, got {first}")
    check_devices(q, k, v, bias)


def check_transform(x: Tensor, features: Tensor, scores: Tensor, mass: Tensor | None, keep: int, prefix: int) -> None:
    """Raise ``ValueError`` unless the arguments of ``transform`` fit together."""
    if x.ndim != 3 or features.ndim != 3 or len(features) != len(x):
        raise ValueError(f"tokens and features must be (B, N, C), got {tuple(x.shape)} and {tuple(features.shape)}")
    tokens, taking_part = x.shape[1], features.shape[1]
    wrong = mass is not None and mass.shape != features.shape[:2]
    if scores.shape != x.shape[:2] or wrong:
        raise ValueError(f"there must be a score for every one of {tokens} tokens, and a mass for {taking_part}")
    isolated = tokens - taking_part
    if not 0 <= isolated <= prefix < keep <= tokens:
        raise ValueError(f"0 <= isolated <= prefix < keep <= tokens must hold, got {(isolated, prefix, keep, tokens)}")
    check_devices(x, features, scores, mass)


def check_devices(*tensors: Tensor | None) -> None:
    """Raise ``ValueError`` unless all tensors are on one device."""
    devices = {tensor.device for tensor in tensors if tensor is not None}
    if len(devices) > 1:
        raise ValueError(f"the tensors must be on one device, got {', '.join(sorted(map(str, devices)))}")


def _attention_runner(q: Tensor, k: Tensor, v: Tensor) -> Runner:
    who = runner(q.device, q.dtype, k.dtype, v.dtype)
    return who if who != "triton" or dispatch.takes_heads(q) else "plain"


def _attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    check_attention(q, k, v, bias, 0)
    if _attention_runner(q, k, v) == "triton":
        return dispatch.attention(q, k, v, bias, scale)
    return _side_by_side(attention.masked(q, k, v, bias, scale))


def _side_by_side(heads: Tensor) -> Tensor:
    """Heads (B, H, N, D) in the layout that the operators promise; a copy where they have another."""
    return heads.transpose(1, 2).contiguous().transpose(1, 2)


def _summed_attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, first: int
) -> tuple[Tensor, Tensor]:
    check_attention(q, k, v, bias, first)
    who = _attention_runner(q, k, v)
    if who == "triton":
        return dispatch.summed_attention(q, k, v, bias, scale, first)
    if who == "plain":
        return attention.summed_in_blocks(q, k, v, bias, scale, first)
    logs = None if bias is None else bias.float().flatten(1)
    return torch.ops.ttf.native_summed_attention(q, k, v, logs, scale, first)


def _transform(
    x: Tensor, features: Tensor, scores: Tensor, mass: Tensor | None, keep: int, prefix: int, *options: Any
) -> Answer:
    check_transform(x, features, scores, mass, keep, prefix)
    reading = Reading.of(*options)
    who = runner(x.device, x.dtype, features.dtype, scores.dtype)
    if who == "triton":
        return dispatch.transform(x, features, scores, mass, keep, prefix, reading)
    if who == "plain":
        return plain.transform(x, features, scores, mass, keep, prefix, reading)
    masses = None if mass is None else mass.float()
    return torch.ops.ttf.native_transform(x, features, scores, masses, keep, prefix, *options)


def _keyed_shapes(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    batch, heads, tokens, dim = q.shape
    return v.new_empty(batch, tokens, heads, dim).transpose(1, 2)


def _attention_shapes(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, first: int
) -> tuple[Tensor, Tensor]:
    batch, heads, tokens, dim = q.shape
    out = v.new_empty(batch, tokens, heads, dim).transpose(1, 2)
    return out, q.new_empty(batch, tokens, dtype=torch.float32)


def _transform_shapes(x: Tensor, features: Tensor, scores: Tensor, mass: Tensor | None, keep: int, *_: Any) -> Answer:
    batch, tokens, channels = x.shape
    sizes = x.new_empty(batch, keep, dtype=torch.float32)
    index = x.new_empty(batch, keep - (tokens - features.shape[1]), dtype=torch.int64)
    return x.new_empty(batch, keep, channels), sizes, index


def _attention_flops(q: Sequence[int], k: Any, v: Any, *_: Any, **__: Any) -> int:
    batch, heads, tokens, dim = q
    return 4 * batch * heads * tokens**2 * dim


def _transform_flops(
    x: Sequence[int], features: Sequence[int], scores: Any, mass: Any, keep: int, prefix: int, *options: Any, **_: Any
) -> int:
    (batch, tokens, channels), redundancy = x, Reading.of(*options).redundancy
    n, m = features[1], keep - (tokens - features[1])
    sizes = 0 if mass is None else m  # a product, too
    return 2 * batch * n * ((n if redundancy else m) * features[2] + m * channels + sizes)


Inputs = Sequence[Tensor | None]


def _gradients(
    run: Callable[..., tuple[Tensor, ...]], inputs: Inputs, wanted: Sequence[bool], gradients: Sequence[Tensor]
) -> list[Tensor | None]:
    """Gradients of ``run(*inputs)`` with respect to the inputs where they are wanted, None for the others."""
    with torch.enable_grad():
        leaves = [
            None if tensor is None else tensor.detach().requires_grad_(want)
            for tensor, want in zip(inputs, wanted, strict=True)
        ]
        out = run(*leaves)
        chosen = [leaf for leaf in leaves if leaf is not None and leaf.requires_grad]
        found = iter(torch.autograd.grad(out, chosen, list(gradients), allow_unused=True))
    return [next(found) if want and tensor is not None else None for tensor, want in zip(inputs, wanted, strict=True)]


def _keep_keyed(ctx: Any, inputs: Any, output: Any) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors)


def _keyed_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    def run(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> tuple[Tensor]:
        return (attention.masked(q, k, v, bias, ctx.scale),)

    return *_gradients(run, ctx.saved_tensors, ctx.needs_input_grad[:4], [gradient]), None


def _keep_attention(ctx: Any, inputs: Any, output: Any) -> None:
    *tensors, ctx.scale, ctx.first = inputs
    ctx.save_for_backward(*tensors)


def _attention_backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
    def run(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        return attention.summed_whole(q, k, v, bias, ctx.scale, ctx.first)

    return *_gradients(run, ctx.saved_tensors, ctx.needs_input_grad[:4], gradients), None, None


def _keep_transform(ctx: Any, inputs: Any, output: Any) -> None:
    x, features, _, mass, _, _, *options = inputs
    ctx.reading = Reading.of(*options)
    ctx.save_for_backward(x, features, mass, *output[1:])


def _transform_backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
    """With respect to tokens, features and mass: which tokens are informative has no gradient."""
    x, features, mass, sizes, index = ctx.saved_tensors
    isolated = x.shape[1] - features.shape[1]

    def run(x: Tensor, features: Tensor, mass: Tensor | None) -> tuple[Tensor, Tensor]:
        dense = TransformReduction(
            sizes=sizes, features=features, index=index, reading=ctx.reading, mass=mass, isolated=isolated
        ).dense()
        return dense.down(x), plain.with_isolated(transformed_sizes(dense.assignment, mass), isolated)

    needed = ctx.needs_input_grad
    own = _gradients(run, (x, features, mass), (needed[0], needed[1], needed[3]), gradients[:2])
    return own[0], own[1], None, own[2], *(6 * [None])


def _register(name: str, run: Any, shapes: Any, keep: Any, backward: Any, flops: Any) -> None:
    operator = f"ttf::{name}"
    torch.library.impl(operator, "default", run, lib=LIBRARY)
    torch.library.register_fake(operator, shapes, lib=LIBRARY)
    torch.library.register_autograd(operator, backward, setup_context=keep, lib=LIBRARY)
    register_flop_formula(getattr(torch.ops.ttf, name))(flops)


_register("attention", _attention, _keyed_shapes, _keep_keyed, _keyed_backward, _attention_flops)
_register(
    "summed_attention", _summed_attention, _attention_shapes, _keep_attention, _attention_backward, _attention_flops
)
_register("transform", _transform, _transform_shapes, _keep_transform, _transform_backward, _transform_flops)
