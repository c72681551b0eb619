"""timm's Eva family: queries and keys of transformed tokens are rotated by the places that these grew from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.models.eva import Eva
from torch import Tensor, nn

import ttf
from ttf.core.exchange import own_class
from ttf.hosts.timm_eva import rotations
from ttf.methods import METHODS

VARIANTS: dict[str, dict[str, Any]] = {
    "eva02": {"use_rot_pos_emb": True, "swiglu_mlp": True, "scale_mlp": True, "qkv_fused": False},
    "dinov3": {
        "use_rot_pos_emb": True,
        "rope_type": "dinov3",
        "use_abs_pos_emb": False,
        "num_reg_tokens": 4,
        "init_values": 0.5,
        "global_pool": "avg",
        "dynamic_img_size": True,
        "rope_rotate_half": True,
    },
    "mixed, per block": {"use_rot_pos_emb": True, "rope_type": "mixed", "class_token": False, "global_pool": "map"},
    "rope attention": {"use_rot_pos_emb": True, "attn_type": "rope", "qk_norm": True},
    "norms last": {"use_rot_pos_emb": True, "use_post_norm": True},
    "no rotation": {"init_values": 0.5},
}
SMALL: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 4,
    "embed_dim": 48,
    "depth": 6,
    "num_heads": 3,
    "num_classes": 10,
}
PLACES = (2, 4)
ROTARY = [name for name in VARIANTS if name != "no rotation"]

PLACELESS = "rotates queries and keys by place"
WHY_NOT = {
    **dict.fromkeys(("atc", "evit", "hourglass", "uniform_pool", "prumerge"), PLACELESS),
    **dict.fromkeys(("prune_and_merge", "sinkhorn", "patch_merger", "sit"), "needs"),
    "tome_dense": "merges inside the branches",
}

OLDEST = "1.0.20"  # of pyproject.toml
Images = Callable[..., Tensor]
Maker = Callable[[str], Any]


@pytest.fixture
def make(stir: Callable[[nn.Module], nn.Module]) -> Maker:
    def made(name: str) -> Any:
        try:
            return stir(Eva(**{**SMALL, **VARIANTS[name]}))
        except TypeError as error:
            if timm.__version__ != OLDEST:
                raise
            pytest.skip(f"timm {OLDEST} does not build it: {error}")

    return made


@pytest.mark.parametrize("name", VARIANTS)
def test_ratio_one_and_remove_change_no_bit(name: str, make: Maker, images: Images) -> None:
    model, x = make(name), images()
    before, keys = model(x), list(model.state_dict())
    assert torch.equal(ttf.apply(model, ratio=1.0)(x), before)
    assert not torch.equal(ttf.apply(model, ratio=0.5, blocks=PLACES)(x), before)
    assert list(model.state_dict()) == keys
    torch.testing.assert_close(model.forward_head(model.forward_features(x)), model(x))
    assert torch.equal(ttf.remove(model)(x), before)


@pytest.mark.parametrize("name", VARIANTS)
def test_pruned_tokens_keep_their_places(name: str, make: Maker, images: Images) -> None:
    """Blocks behind the pruning by hand: timm's own forward on the kept tokens, with the kept rows of the rotations."""
    model, x = make(name), images(2, 32)
    inputs: list[tuple[Any, dict[str, Any]]] = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda _, args, kwargs: inputs.append((args[0], kwargs)), with_kwargs=True)
    model(x)
    ropes = [kwargs.get("rope") for _, kwargs in inputs]
    inputs.clear()
    ttf.apply(model, "top_k", ratio=0.5, blocks=PLACES)
    layers = ttf.trace(model, x)
    inputs.clear()
    model(x)
    prefix, blocks = model.num_prefix_tokens, list(model.blocks)
    for number, layer in ((3, layers[0]), (5, layers[1])):
        tokens = inputs[number][0].x
        kept = layer.origin[:, prefix:] - prefix
        out = ttf.apply(model, "top_k", ratio=0.5, blocks=PLACES).blocks[number](inputs[number][0], rope=ropes[number])
        for image in range(2):
            rope = None if ropes[number] is None else ropes[number][..., kept[image], :]
            own = own_class(blocks[number]).forward(
                ttf.remove(model).blocks[number], tokens[image : image + 1], rope=rope
            )
            torch.testing.assert_close(out.x[image : image + 1], own, atol=1e-5, rtol=1e-5)
            ttf.apply(model, "top_k", ratio=0.5, blocks=PLACES)


@pytest.mark.parametrize("name", ["eva02", "dinov3"])
@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_works_or_says_why_not(method: str, name: str, make: Maker, images: Images) -> None:
    model, x = make(name), images()
    before = model(x)
    why_not = WHY_NOT.get(method)
    if why_not is not None:
        with pytest.raises(ValueError, match=why_not):
            ttf.apply(model, method, ratio=0.6, blocks=PLACES)
        return
    out = ttf.apply(model, method, ratio=0.6, blocks=PLACES)(x)
    assert bool(torch.isfinite(out).all()) and not torch.equal(out, before)
    assert [layer.block for layer in ttf.trace(model, x)] == list(PLACES)


def test_rotations_are_gathered_by_place() -> None:
    rope, places = torch.arange(12.0).view(6, 2), torch.tensor([[5, 0], [2, 3]])
    assert rotations(rope, places)[:, 0].tolist() == [[[10.0, 11.0], [0.0, 1.0]], [[4.0, 5.0], [6.0, 7.0]]]
    per_head = torch.stack((rope, -rope))
    assert torch.equal(rotations(per_head, places)[:, 1], -rotations(rope, places)[:, 0])
    per_image = torch.stack((rope, 10 * rope)).unsqueeze(1)
    assert torch.equal(rotations(per_image, places)[1, 0], 10 * rope[places[1]])


@pytest.mark.parametrize("name", ROTARY)
def test_gradients_and_checkpointing(name: str, make: Maker, images: Images) -> None:
    model, x = ttf.apply(make(name), ratio=0.5, blocks=PLACES, tau=10.0).train(), images()
    model(x).square().sum().backward()
    first = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.set_grad_checkpointing(True)
    model(x).square().sum().backward()
    for key, parameter in model.named_parameters():
        if key in first:
            torch.testing.assert_close(parameter.grad, first[key])


@pytest.mark.parametrize("name", ["eva02", "dinov3"])
def test_taps_are_dense(name: str, make: Maker, images: Images) -> None:
    model, x = make(name), images()
    plain = model.forward_intermediates(x, intermediates_only=True)
    taps = ttf.apply(model, ratio=0.5, blocks=PLACES).forward_intermediates(x, intermediates_only=True)
    assert [tap.shape for tap in taps] == [tap.shape for tap in plain]
    assert all(torch.equal(a, b) for a, b in zip(taps[:2], plain, strict=False))
    assert not torch.allclose(taps[2], plain[2])


def test_images_of_any_size(make: Maker, images: Images) -> None:
    model, x = make("dinov3"), images(2, 24, 40)
    layers = ttf.trace(ttf.apply(model, ratio=0.5, blocks=PLACES), x)
    assert [layer.W.shape[1] for layer in layers] == [5 + 30, 5 + 15] and layers[0].grid == (6, 10)


def test_one_graph(make: Maker, images: Images) -> None:
    model, x = ttf.apply(make("dinov3"), ratio=0.5, blocks=PLACES, tau=10.0).requires_grad_(False), images()
    torch.compiler.reset()
    graph: Any = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(graph(x), model(x), atol=1e-4, rtol=1e-4)
