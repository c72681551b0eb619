"""Hosts: how one library's models are entered. A host's module is imported only when one of its models is met."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from torch import Tensor, nn

from ttf.methods.base import LayerView
from ttf.ops.attention import Wanted
from ttf.schedule import Schedule

Attend = Callable[[nn.Module, Tensor, Tensor | None, Wanted, int], LayerView]
Branch = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]  # what goes in (a norm), and the rest

# class of the model (module.Class, any base class counts) -> module with a function ``host(model)``
SUPPORTED = {
    "timm.models.vision_transformer.VisionTransformer": "ttf.hosts.timm_vit",
    "ttf.models.lv_vit.LVViT": "ttf.hosts.own_models",
    "ttf.models.t2t_vit.T2TViT": "ttf.hosts.own_models",
    "ttf.models.ps_vit.PSViT": "ttf.hosts.own_models",
    "ttf.models.segmenter.Segmenter": "ttf.hosts.segmenter",
}
WRAPPERS = {"_orig_mod": "torch.compile", "module": "DataParallel or DistributedDataParallel"}


@dataclass(frozen=True)
class Host:
    """One family of models.

    Attributes:
        attend: (block, x, sizes, wanted, prefix) -> view: tokens after the attention residual, and what was wanted of
            the layer. ``sizes`` (B, N) or None enter as log s (Eq. 7).
        feed_forward: (block, x) -> tokens after the feed-forward residual.
        branches: (block) -> its two residual branches: the block is x + rest(norm(x)), first attention, then
            feed-forward. For methods that merge inside a branch; there are no sizes there.
        prefix: number of prefix tokens of a model.
        blocks: default blocks to reduce at, from the depth.
        reads_class_token: whether a model's head reads the class token (or distillation token) and nothing else.
        grid: (model, (height, width) of the images) -> rows and columns of patches.
        enter: give the model what its container cannot do alone (weighted pooling, dense taps); undone by ``leave``.
        leave: take that back.
        container: name of the attribute that holds the blocks.
        first: number of its first block: how many layers there are in front of it that always stay whole.
    """

    attend: Attend
    feed_forward: Callable[[nn.Module, Tensor], Tensor]
    branches: Callable[[nn.Module], tuple[Branch, Branch]]
    prefix: Callable[[nn.Module], int]
    blocks: Callable[[int], tuple[int, ...]]
    reads_class_token: Callable[[nn.Module], bool]
    grid: Callable[[nn.Module, tuple[int, int]], tuple[int, int]]
    enter: Callable[[nn.Module], None]
    leave: Callable[[nn.Module], None]
    container: str = "blocks"
    first: int = 0


def names() -> list[str]:
    """Classes of models that can be compressed."""
    return sorted(SUPPORTED)


def check(schedule: Schedule, host: Host, depth: int) -> None:
    """Raise ``ValueError`` where the schedule names blocks that a model of ``depth`` has not, or that stay whole."""
    schedule.check(depth)
    whole = [block for block in getattr(schedule, "blocks", None) or () if block < host.first]
    if whole:
        raise ValueError(f"blocks {whole} stay whole: tokens of this model go at blocks {host.first} to {depth - 1}")


def refuse_wrapped(model: nn.Module) -> None:
    """Raise ``ValueError`` for a model inside torch.compile's or a parallel wrapper."""
    for attribute, wrapper in WRAPPERS.items():
        if isinstance(getattr(model, attribute, None), nn.Module):
            inner = f"model.{attribute}"
            raise ValueError(f"this model is wrapped by {wrapper}: apply ttf first, then wrap; or use {inner}")


def find(model: nn.Module) -> Host:
    """The host of ``model``.

    Raises:
        ValueError: there is none; the message lists what is supported.
    """
    for base in type(model).__mro__:
        module = SUPPORTED.get(f"{base.__module__}.{base.__qualname__}")
        if module:
            return import_module(module).host(model)
    refuse_wrapped(model)
    raise ValueError(f"{type(model).__name__} is no supported host. Supported: {', '.join(names())} and subclasses")
