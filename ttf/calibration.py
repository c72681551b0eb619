"""Calibration with gradients for Prune and Merge: which tokens matter in which block, over some labelled images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from ttf import hosts
from ttf.core import entry
from ttf.core.host import Host
from ttf.core.plan import Observer, Plan
from ttf.data.files import atomic_write
from ttf.methods.base import LayerView
from ttf.methods.prune_and_merge import LayerMatrices, PruneAndMerge, importance_of_maps, matrices
from ttf.methods.random_pruning import RandomPruning
from ttf.models.checkpoint_files import read as read_checkpoint
from ttf.ops.attention import Wanted
from ttf.schedule import KeepRatio, check_whole

Batch = tuple[Tensor, Tensor | None]
PARTS = ("merge", "recover", "mask")
BATCH = 16  # images that go through the model together


class _Probe(Observer):
    """Keeps the attention maps of some blocks, which stay whole, in the graph of gradients."""

    def __init__(self, blocks: tuple[int, ...]) -> None:
        self.blocks, self.wanted = blocks, Wanted(attention=True)
        self.maps: dict[int, Tensor] = {}

    def view(self, block: int, view: LayerView) -> None:
        assert view.attention is not None
        self.maps[block] = view.attention


def _probed(model: nn.Module, host: Host, blocks: Sequence[int] | None) -> tuple[nn.Module, _Probe]:
    """A twin of the model, uncompressed, that shows a probe its attention maps; the model itself is not touched."""
    depth = host.first + len(entry.blocks_of(model, host))
    chosen = tuple(range(host.first, depth)) if blocks is None else tuple(sorted(set(blocks)))
    schedule, probe = KeepRatio(1.0, chosen), _Probe(chosen)
    schedule.check(depth)
    check_whole(schedule, host.first, depth)
    plan = Plan(RandomPruning(), schedule, host, host.prefix(model), host.class_token(model), observer=probe)
    twin = entry.twin(model)
    entry.leave_model(twin)
    entry.enter(twin, plan)
    return twin.eval(), probe  # its modules have a mode of their own


def _batch_importance(twin: nn.Module, probe: _Probe, images: Tensor, labels: Tensor | None) -> dict[int, Tensor]:
    """Block -> what one batch says of every token, (N,)."""
    out = twin(images.detach().requires_grad_())  # maps need a graph where the parameters are frozen, too
    logits = getattr(out, "logits", out)
    target = logits.detach().argmax(dim=1) if labels is None else labels.to(logits.device)
    maps = dict(probe.maps)
    gradients = torch.autograd.grad(F.cross_entropy(logits.float(), target), list(maps.values()))
    pairs = zip(maps.items(), gradients, strict=True)
    return {block: importance_of_maps(attention.detach(), gradient) for (block, attention), gradient in pairs}


def _grid(host: Host, model: nn.Module, images: Tensor) -> tuple[int, int]:
    height, width = images.shape[-2:]
    return host.grid(model, (height, width))


def token_importance(
    model: nn.Module, batches: Iterable[Batch], blocks: Sequence[int] | None = None
) -> tuple[dict[int, Tensor], tuple[int, int]]:
    """Gradient-weighted attention that every patch receives: sum over batches of |sum of gradient * A| / (B H N).

    The uncompressed model is run in evaluation mode with gradients of the cross-entropy. Model, gradients of its
    parameters and training mode stay as they are; a compressed model stays compressed.

    Args:
        model: a supported host.
        batches: pairs (images, labels), all images of one size; labels None: what the model answers.
        blocks: 0-based; None: all.

    Returns:
        Block -> (n,) float32, on the device of the model; and (rows, columns) of the patches.

    Raises:
        ValueError: the model is no supported host, blocks it does not have, no images, or images of several sizes.
    """
    host = hosts.find(model)
    prefix, (twin, probe) = host.prefix(model), _probed(model, host, blocks)
    device = next(model.parameters()).device
    total: dict[int, Tensor] = {}
    grids: set[tuple[int, int]] = set()
    with torch.enable_grad():
        for images, labels in batches:
            grids.add(_grid(host, model, images))
            if len(grids) > 1:
                raise ValueError(f"calibration needs images of one size, and these make grids {sorted(grids)}")
            part = _batch_importance(twin, probe, images.to(device), labels)
            total = {block: total[block] + values if total else values for block, values in part.items()}
    if not total:
        raise ValueError("calibration needs at least one batch of images and at least one block")
    return {block: values[prefix:] for block, values in total.items()}, grids.pop()


def calibrate(
    model: nn.Module,
    batches: Iterable[Batch],
    keep_rate: float = 0.6,
    prune_rate: float = 0.1,
    blocks: Sequence[int] | None = None,
    decay: float = 0.025,
) -> PruneAndMerge:
    """Prune and Merge for this model: ``ttf.apply(model, method=method, blocks=method.blocks)``.

    Args:
        model: a supported host; not changed, see ``token_importance``.
        batches: pairs (images, labels), all images of one size; labels None: what the model answers.
        keep_rate: share of patch tokens that become centres, mean over the blocks; blocks differ by what matters there.
        prune_rate: share that is pruned.
        blocks: 0-based blocks to reduce in; None: all.
        decay: how much less each block's importance counts than that of the one before.

    Raises:
        ValueError: as ``token_importance``, or rates out of their range.
    """
    ranks, (_, columns) = token_importance(model, batches, blocks)
    prefix = hosts.find(model).prefix(model)
    return PruneAndMerge(matrices(ranks, columns, prefix, keep_rate, prune_rate, decay))


def calibrate_on(model: nn.Module, images: Tensor, **options: Any) -> PruneAndMerge:
    """``calibrate`` on images (n, 3, H, W) with the model's own answers as labels; ``options`` as there."""
    return calibrate(model, [(batch, None) for batch in images.split(BATCH)], **options)


def save_matrices(method: PruneAndMerge, path: Path) -> None:
    """Write the matrices as safetensors, ``BLOCK.merge``, ``BLOCK.recover`` and ``BLOCK.mask`` for every block."""
    tensors = {
        f"{block}.{part}": getattr(layer, part).detach().cpu().contiguous()
        for block, layer in method.layers.items()
        for part in PARTS
    }
    atomic_write(path, lambda temporary: save_file(tensors, temporary))


def load_matrices(path: Path) -> PruneAndMerge:
    """The method of a file of ``save_matrices``, for ``ttf.apply(model, method=method, blocks=method.blocks)``.

    Raises:
        ValueError: the file is missing, corrupt, or holds something else.
    """
    tensors, _ = read_checkpoint(path)
    blocks = sorted({int(key.split(".")[0]) for key in tensors if key.split(".")[0].isdigit()})
    if not blocks or {f"{block}.{part}" for block in blocks for part in PARTS} != tensors.keys():
        raise ValueError(f"{path} holds no matrices of Prune and Merge: take method.safetensors of a training run")
    layers = {b: LayerMatrices(*(tensors[f"{b}.{part}"].float() for part in PARTS)) for b in blocks}
    return PruneAndMerge(layers)
