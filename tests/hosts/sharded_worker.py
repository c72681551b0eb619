"""One process of test_sharding.py: compressed models under FSDP2, FSDP 1 and DDP against the plain ones, on gloo.

Prints one line per case; exits with 1 if one differs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy
from torch.nn.parallel import DistributedDataParallel

import ttf

OPTIONS: dict[str, dict[str, Any]] = {
    "default": {"tau": 10.0},
    "recovered": {"tau": 10.0, "recover": "transpose"},
    "tome": {"method": "tome"},
}


def model_of() -> VisionTransformer:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"img_size": 32, "patch_size": 4, "embed_dim": 48, "depth": 6, "num_heads": 3}
    return VisionTransformer(num_classes=10, **sizes)


def images() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def each_block(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    for block in list(model.blocks):  # type: ignore[arg-type]
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def fsdp2(compress: Callable[[nn.Module], nn.Module], mesh: DeviceMesh) -> nn.Module:
    return each_block(compress(model_of()), mesh)


def fsdp2_first(compress: Callable[[nn.Module], nn.Module], mesh: DeviceMesh) -> nn.Module:
    return compress(each_block(model_of(), mesh))


def fsdp1(compress: Callable[[nn.Module], nn.Module], mesh: DeviceMesh) -> nn.Module:
    policy = partial(transformer_auto_wrap_policy, transformer_layer_cls={Block})
    device = torch.device("cpu")
    return FullyShardedDataParallel(
        compress(model_of()), auto_wrap_policy=policy, device_id=device, use_orig_params=True
    )


def ddp(compress: Callable[[nn.Module], nn.Module], mesh: DeviceMesh) -> nn.Module:
    return DistributedDataParallel(compress(model_of()))


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Whole gradients by name; FSDP 1 keeps its parts to itself."""
    named = {name.removeprefix("module."): p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: grad.full_tensor() if hasattr(grad, "full_tensor") else grad for name, grad in named.items()}


def differs(way: Callable[..., nn.Module], options: dict[str, Any], mesh: DeviceMesh) -> str:
    """What is not as in the plain model, or nothing."""
    compress = partial(ttf.apply, ratio=0.5, **options)
    plain, model, x = compress(model_of()), way(compress, mesh), images()
    expected, out = plain(x), model(x)
    for each in (expected, out):
        each.square().sum().backward()
    if not torch.allclose(out, expected, atol=1e-5):
        return "logits"
    own, found = gradients(plain), gradients(model)
    if way is not fsdp1 and not all(torch.allclose(found[n], own[n], atol=1e-4, rtol=1e-4) for n in own):
        return "gradients"
    if way not in (fsdp2, fsdp2_first):
        return ""
    if len(ttf.trace(model, x)) != 3:
        return "trace"
    return "" if torch.allclose(ttf.remove(model)(x), model_of()(x), atol=1e-5) else "remove"


def main() -> int:
    """How many cases differ."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    mesh, wrong = init_device_mesh("cpu", (dist.get_world_size(),)), 0
    for name, options in OPTIONS.items():
        for way in (fsdp2, fsdp2_first, fsdp1, ddp):
            what = differs(way, options, mesh)
            wrong += bool(what)
            print(f"{way.__name__}, {name}: {what or 'equal'}", flush=True)
    dist.destroy_process_group()
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
