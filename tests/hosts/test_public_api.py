"""apply, remove, applied and trace, as a user meets them."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import ParallelScalingBlock, VisionTransformer
from torch import Tensor, nn

import ttf
from ttf.hosts import names
from ttf.methods import TokenTransform
from ttf.schedule import Counts, RemovePerBlock

Tiny = Callable[..., VisionTransformer]
Images = Callable[..., Tensor]


class Doubled(VisionTransformer):
    """A user's own subclass, with its own forward pass."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return 2 * super().forward(x, *args, **kwargs)


class Shifted(VisionTransformer):
    """A user's own subclass, with its own features."""

    def forward_features(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return 1 + super().forward_features(x, *args, **kwargs)


def _modes(model: nn.Module) -> dict[str, bool]:
    return {name: module.training for name, module in model.named_modules()}


def test_apply_works_in_place(tiny: Tiny) -> None:
    model = tiny()
    parameters = {name: id(p) for name, p in model.named_parameters()}
    assert ttf.apply(model) is model
    assert isinstance(model, VisionTransformer)
    assert {name: id(p) for name, p in model.named_parameters()} == parameters
    assert ttf.remove(model) is model


def test_second_apply_replaces_the_first(tiny: Tiny, images: Images) -> None:
    model, x = tiny(), images()
    once = ttf.apply(model, ratio=0.5, blocks=(2, 7), preset="paper")(x)
    twice = ttf.apply(ttf.apply(model, ratio=0.8, recover=True), ratio=0.5, blocks=(2, 7), preset="paper")(x)
    assert torch.equal(twice, once)
    ttf.remove(model)
    assert type(model) is VisionTransformer
    assert type(model.blocks) is nn.Sequential


def test_failed_second_apply_leaves_the_first(tiny: Tiny, images: Images) -> None:
    model, x = tiny(), images()
    first = ttf.apply(model, ratio=0.5)(x)
    with pytest.raises(ValueError, match="kappa"):
        ttf.apply(model, kappa=7.0)
    assert torch.equal(model(x), first)


def test_remove_of_a_plain_model_does_nothing(tiny: Tiny) -> None:
    model = tiny()
    container = model.blocks
    assert ttf.remove(model) is model
    assert model.blocks is container


def test_weights_loaded_while_compressed_stay(tiny: Tiny, images: Images, stir: Callable[..., Any]) -> None:
    model, other, x = ttf.apply(tiny()), stir(tiny()), images()
    model.load_state_dict(other.state_dict())
    assert torch.equal(ttf.remove(model)(x), other(x))


def test_applied_is_for_the_length_of_its_block(tiny: Tiny, images: Images) -> None:
    model, x = tiny(), images()
    before, container = model(x), model.blocks
    with ttf.applied(model, ratio=0.5) as compressed:
        assert compressed is model
        assert not torch.equal(model(x), before)
    assert torch.equal(model(x), before)
    assert model.blocks is container
    assert type(model) is VisionTransformer


def test_applied_gives_an_earlier_plan_back(tiny: Tiny, images: Images) -> None:
    model, x = tiny(), images()
    before = ttf.apply(model, ratio=0.9, recover=True)(x)
    with ttf.applied(model, ratio=0.5), ttf.applied(model, ratio=0.3):
        assert len(ttf.trace(model, x)[-1].sizes[0]) == 1 + 1  # 64 -> 19 -> 5 -> 1
    assert torch.equal(model(x), before)


@pytest.mark.parametrize("compressed", [False, True])
def test_applied_restores_after_an_exception(compressed: bool, tiny: Tiny, images: Images) -> None:
    model, x = tiny(), images()
    before = (ttf.apply(model, ratio=0.6) if compressed else model)(x)
    with pytest.raises(KeyError), ttf.applied(model, ratio=0.3):
        raise KeyError
    assert torch.equal(model(x), before)
    with pytest.raises(ValueError, match="ratio"), ttf.applied(model, ratio=3):
        pass
    assert torch.equal(model(x), before)


@pytest.mark.parametrize("training", [True, False])
def test_modes_of_the_modules_are_left_alone(training: bool, tiny: Tiny, images: Images) -> None:
    model = tiny().train(training)
    model.blocks[4].train(not training)
    before = _modes(model)
    ttf.apply(model)
    assert _modes(model) == before
    ttf.trace(model, images())
    assert _modes(model) == before
    assert _modes(ttf.remove(model)) == before


def test_modes_set_while_compressed_stay(tiny: Tiny) -> None:
    model = ttf.apply(tiny()).train()
    assert all(_modes(model).values())
    assert all(_modes(ttf.remove(model)).values())


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deepcopy", "pickle"]
)
@pytest.mark.parametrize("changes", [{}, {"global_pool": "avg"}, {"global_pool": "map"}], ids=str)
def test_copies_are_whole_and_independent(
    copied: Callable[[Any], Any], changes: dict[str, Any], tiny: Tiny, images: Images
) -> None:
    model, x = tiny(**changes), images()
    plain, compressed = model(x), ttf.apply(model, ratio=0.5)(x)
    twin = copied(model)
    assert torch.equal(twin(x), compressed)
    assert list(twin.state_dict()) == list(model.state_dict())
    assert torch.equal(ttf.remove(twin)(x), plain)
    assert type(twin) is VisionTransformer
    assert type(twin.blocks) is nn.Sequential
    nn.init.zeros_(twin.blocks[0].mlp.fc1.weight)
    assert torch.equal(model(x), compressed)


def test_threads_share_one_model(tiny: Tiny, images: Images) -> None:
    model = ttf.apply(tiny(), tau=10.0)  # 150 would multiply the rounding of other thread settings
    inputs = [images(1 + seed % 3, seed=seed) for seed in range(24)]
    with torch.no_grad():
        serial = [model(x) for x in inputs]
    layers = [ttf.trace(model, x) for x in inputs]
    with ThreadPoolExecutor(2) as pool:
        answers = pool.map(torch.no_grad()(model.forward), inputs)
        traces = pool.map(lambda x: ttf.trace(model, x), inputs)
        torch.testing.assert_close(list(answers), serial, atol=1e-5, rtol=1e-5)
        for got, expected in zip(traces, layers, strict=True):
            assert all(torch.equal(a.kept, b.kept) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("kind", [Doubled, Shifted])
def test_subclasses_keep_their_own_methods(kind: type[VisionTransformer], images: Images) -> None:
    model = kind(img_size=32, patch_size=4, embed_dim=48, depth=4, num_heads=3, num_classes=10).eval()
    x = images()
    before = model(x)
    assert torch.equal(ttf.apply(model, ratio=1.0)(x), before)
    assert torch.equal(ttf.remove(model)(x), before)
    assert type(model) is kind


def test_slices_of_compressed_blocks_are_blocks(tiny: Tiny) -> None:
    model = tiny()
    blocks = list(model.blocks)
    part = ttf.apply(model).blocks[2:5]
    assert type(part) is nn.Sequential
    assert list(part) == blocks[2:5]


def test_trace_tells_what_each_layer_did(tiny: Tiny, images: Images) -> None:
    model, x = ttf.apply(tiny(dynamic_img_size=True, reg_tokens=2)), images(2, 24, 40)
    before = model(x)
    layers = ttf.trace(model, x)
    assert torch.equal(model(x), before)
    assert [layer.block for layer in layers] == [3, 6, 9]
    assert [layer.W.shape for layer in layers] == [(2, 45, 63), (2, 32, 45), (2, 23, 32)]
    assert {(layer.grid, layer.prefix) for layer in layers} == {((6, 10), 3)}
    for layer in layers:
        rows = torch.ones(layer.W.shape[:2])
        assert bool((layer.kept.diff(dim=1) > 0).all())
        torch.testing.assert_close(layer.W.sum(2), rows)
        torch.testing.assert_close(layer.total.sum(2), rows)
        torch.testing.assert_close(layer.sizes.sum(1), torch.full((2,), 63.0))


def test_trace_is_consistent_from_layer_to_layer(tiny: Tiny, images: Images) -> None:
    first, second, third = ttf.trace(ttf.apply(tiny()), images())
    assert torch.equal(first.origin, first.kept)
    assert torch.equal(first.total, first.W)
    torch.testing.assert_close(third.total, third.W @ second.W @ first.W)
    for image in range(2):
        origin = first.kept[image][second.kept[image]]
        assert torch.equal(second.origin[image], origin)
        assert torch.equal(third.origin[image], origin[third.kept[image]])


def test_trace_follows_real_tokens(tiny: Tiny, images: Images) -> None:
    """W X: what the feed-forward half of the reducing block gets is W times what its attention half left."""
    model, x = ttf.apply(tiny(), blocks=(3,), feature="norm"), images()
    seen: list[Tensor] = []
    model.blocks[3].norm2.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    (layer,) = ttf.trace(model, x)
    before, after = seen
    torch.testing.assert_close(after, layer.W @ before, atol=1e-5, rtol=1e-5)


def test_trace_of_ratio_one_is_empty(tiny: Tiny, images: Images) -> None:
    assert ttf.trace(ttf.apply(tiny(), ratio=1.0), images()) == []


def test_trace_needs_a_compressed_model(tiny: Tiny, images: Images) -> None:
    with pytest.raises(ValueError, match="not compressed: call ttf"):
        ttf.trace(tiny(), images())


@pytest.mark.parametrize(
    ("options", "tokens"),
    [
        ({}, 21),
        ({"ratio": 0.5, "blocks": (0, 11)}, 16),
        ({"ratio": 0.7, "rounding": "ceil"}, 23),
        ({"schedule": RemovePerBlock(4)}, 16),
        ({"schedule": Counts(((2, 49), (11, 7)))}, 7),
        ({"method": TokenTransform(tau=20.0)}, 21),
        ({"ratio": 0.001}, 1),
    ],
    ids=str,
)
def test_schedules_reach_the_model(options: dict[str, Any], tokens: int, tiny: Tiny, images: Images) -> None:
    model = ttf.apply(tiny(), **options)
    assert model.forward_features(images()).shape == (2, 1 + tokens, 48)


def test_paper_preset_is_the_literal_reading(tiny: Tiny, images: Images) -> None:
    model, x = tiny(), images()
    preset = ttf.apply(model, preset="paper")(x)
    literal = TokenTransform(accumulate=False, isolate=False, feature="x", selection="informative")
    assert torch.equal(ttf.apply(model, literal)(x), preset)
    assert not torch.equal(ttf.apply(model)(x), preset)
    changed = ttf.apply(model, preset="paper", isolate=True)(x)
    assert not torch.equal(changed, preset)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "tokens"}, "unknown method 'tokens': there are .*token_transform"),
        ({"preset": "best"}, "preset must be one of default, paper"),
        ({"kapa": 0.5}, "no option kapa: there are kappa, tau, .*scaling"),
        ({"recover": "bilinear"}, "recover must be True, False or one of nearest, transpose"),
        ({"rounding": "up"}, "rounding must be one of floor, round, ceil"),
        ({"ratio": 0.0}, r"ratio .*\(0, 1\]"),
        ({"ratio": 1.5}, r"ratio .*\(0, 1\]"),
        ({"blocks": (3, 12)}, r"blocks \[12\] are out of range.*0 to 11"),
        ({"blocks": (-1,)}, r"blocks \[-1\] are out of range"),
        ({"schedule": RemovePerBlock(2, (40,))}, r"blocks \[40\] are out of range"),
        ({"kappa": 2.0}, "kappa"),
        ({"method": TokenTransform(), "tau": 3.0}, "a method object has its own"),
    ],
    ids=str,
)
def test_wrong_options_name_what_is_valid(options: dict[str, Any], message: str, tiny: Tiny, images: Images) -> None:
    model, x = tiny(), images()
    before = model(x)
    with pytest.raises(ValueError, match=message):
        ttf.apply(model, **options)
    assert torch.equal(model(x), before)


@pytest.mark.parametrize("make", [lambda: nn.Linear(2, 2), lambda: timm.create_model("resnet10t")])
def test_unsupported_models_are_told_what_is_supported(make: Callable[[], nn.Module]) -> None:
    with pytest.raises(ValueError) as error:
        ttf.apply(make())
    assert all(name in str(error.value) for name in names())


def test_unknown_blocks_are_told_what_is_supported(tiny: Tiny) -> None:
    with pytest.raises(ValueError, match=r"ParallelScalingBlock.*Block, ResPostBlock"):
        ttf.apply(tiny(block_fn=ParallelScalingBlock))


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel])
def test_wrapped_models_are_told_to_apply_first(wrap: Callable[[nn.Module], nn.Module], tiny: Tiny) -> None:
    with pytest.raises(ValueError, match=r"apply .*first"):
        ttf.apply(wrap(tiny()))


@pytest.mark.parametrize("call", ["__call__", "forward_features", "forward_intermediates"])
@pytest.mark.parametrize("global_pool", ["token", "map"])
def test_attention_masks_are_refused(call: str, global_pool: str, tiny: Tiny, images: Images) -> None:
    model = ttf.apply(tiny(global_pool=global_pool))
    with pytest.raises(ValueError, match="no attention mask"):
        getattr(model, call)(images(), attn_mask=torch.zeros(65, 65))


def test_class_rows_without_a_class_token(tiny: Tiny, images: Images) -> None:
    model = tiny(class_token=False, global_pool="avg")
    with pytest.raises(ValueError, match="class token"):
        ttf.apply(model, score_rows="class")(images())


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("images", r"of image 0 of the batch \(from 0\) contain NaN or infinite values: check that input image"),
        ("weights", "of every image contain NaN or infinite values: check the weights and the input images"),
    ],
)
def test_broken_values_are_refused(place: str, said: str, tiny: Tiny, images: Images) -> None:
    model, x = ttf.apply(tiny()), images()
    with torch.no_grad():
        (x if place == "images" else model.blocks[2].attn.qkv.weight).view(-1)[7] = float("nan")
    with pytest.raises(ValueError, match=said):
        model(x)


def test_the_late_schedule_changes_no_logit_in_the_last_block(tiny, images):
    model, x = tiny(), images()
    base = model(x)
    ttf.apply(model, schedule="late", ratio=0.999999, blocks=[])
    assert [layer.W.shape[1] for layer in ttf.trace(model, x)] == [2]
    torch.testing.assert_close(model(x), base)
    ttf.apply(model, schedule="late", ratio=0.5)
    assert [layer.W.shape[1] for layer in ttf.trace(model, x)] == [33, 17, 9, 2]


def test_the_late_schedule_is_refused_where_patch_tokens_are_read(tiny):
    for model, recover in ((tiny(global_pool="avg"), False), (tiny(), True)):
        with pytest.raises(ValueError, match="heads that read the class token alone"):
            ttf.apply(model, schedule="late", recover=recover)
    with pytest.raises(ValueError, match='must be "auto", "late", the .yaml file of a search or a Schedule'):
        ttf.apply(tiny(), schedule="early")
