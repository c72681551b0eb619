"""Modules are called as they always were: hooks, looping subclasses, pruned and replaced blocks, paths of a head."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import ttf
from tests.conftest import TINY
from ttf.core.tokens import Tokens, TokensError
from ttf.methods.ats import ATS

Tiny = Callable[..., VisionTransformer]
Images = Callable[..., Tensor]
SOFT: dict[str, Any] = {"ratio": 0.5, "tau": 10.0}  # 150 would multiply the rounding of other ways to compute


def _own(kind: type[VisionTransformer], stir: Callable[[nn.Module], Any], **changes: Any) -> Any:
    return stir(kind(**{**TINY, **changes}))


# hooks


def _watched(model: Any) -> tuple[Any, Counter]:
    """Forward, pre and backward hooks on blocks, attention, MLP and the container; what fired, by kind."""
    fired: Counter = Counter()
    parts = [("block", b) for b in model.blocks] + [("container", model.blocks)]
    parts += [(name, getattr(b, name)) for b in model.blocks for name in ("attn", "mlp", "norm1")]

    def count(kind: str) -> Callable[..., None]:
        return lambda *_: fired.update([kind])

    for name, part in parts:
        part.register_forward_hook(count(f"{name} forward"))
        part.register_forward_pre_hook(count(f"{name} pre"))
        part.register_full_backward_hook(count(f"{name} backward"))
        part.register_full_backward_pre_hook(count(f"{name} backward pre"))
    return model, fired


@pytest.mark.parametrize(
    "options", [{}, {"recover": True}, {"method": "evit"}, {"method": "tome_dense"}, {"score_rows": "class"}], ids=str
)
def test_hooks_fire_as_often_as_uncompressed(options: dict[str, Any], tiny: Tiny, images: Images) -> None:
    model, fired = _watched(tiny())
    model(images()).square().sum().backward()
    before = dict(fired)
    fired.clear()
    ttf.apply(model, ratio=0.5, **options)(images()).square().sum().backward()
    assert dict(fired) == before
    assert set(before.values()) == {1, 12}


def test_hooks_read_what_blocks_give(tiny: Tiny, images: Images) -> None:
    """Shapes, a detached copy, the first of a tuple: what feature taps and Grad-CAM do with an output."""
    model, seen = ttf.apply(tiny(), ratio=0.5), list[tuple[Any, ...]]()
    for block in model.blocks:
        block.register_forward_hook(
            lambda _, __, out: seen.append((out.shape, out.detach().mean(), out[0] if isinstance(out, tuple) else out))
        )
    model(images())
    assert [shape[1] for shape, _, _ in seen] == [65] * 3 + [33] * 3 + [17] * 3 + [9] * 3
    assert all(isinstance(x, Tensor) for _, _, x in seen)


def test_gradients_of_hooked_outputs(tiny: Tiny, images: Images) -> None:
    model, kept = ttf.apply(tiny(), ratio=0.5), list[Tensor]()
    model.blocks[8].register_forward_hook(lambda _, __, out: out.register_hook(kept.append) and None)
    model(images()).sum().backward()
    assert [tuple(gradient.shape) for gradient in kept] == [(2, 17, 48)]


# the tokens themselves


def test_tokens_refuse_what_only_tensors_can(tiny: Tiny, images: Images) -> None:
    model, x = ttf.apply(tiny(), ratio=0.5), images()
    tokens = model.blocks(model._pos_embed(model.patch_embed(x)))
    assert isinstance(tokens, Tokens) and not hasattr(tokens, "to")
    for use in (
        lambda y: y + 1,
        lambda y: 2 * y,
        lambda y: y @ y,
        lambda y: y.mean(2),
        lambda y: y.reshape(-1),
        lambda y: y.relu(),
        lambda y: y / 2,
    ):
        with pytest.raises(TokensError, match="which are no tensor"):
            use(tokens)
    with pytest.raises(TypeError, match="Tokens"):
        nn.functional.layer_norm(tokens, (48,))
    with pytest.raises(ValueError, match="recover=True"):
        tokens.dense()


def test_heads_read_tokens_as_the_dense_ones_they_stand_for(tiny: Tiny, images: Images) -> None:
    model, x = ttf.apply(tiny(), ATS(reference=20), ratio=0.5), images(4)
    tokens = model.blocks(model._pos_embed(model.patch_embed(x)))
    real = [image[size > 0] for image, size in zip(tokens.x, tokens.sizes, strict=True)]
    assert any(len(image) < tokens.x.shape[1] for image in real)
    torch.testing.assert_close(tokens.mean(1), torch.stack([image.mean(0) for image in real]))
    torch.testing.assert_close(tokens.amax(dim=1), torch.stack([image.amax(0) for image in real]))
    torch.testing.assert_close(tokens[:, 1:].mean(1), torch.stack([image[1:].mean(0) for image in real]))
    assert torch.equal(tokens[:, 0], tokens.x[:, 0])
    dense = ttf.apply(model, ratio=0.5, recover=True).blocks(model._pos_embed(model.patch_embed(x)))
    assert torch.equal(dense[:, 1:], dense.dense()[:, 1:]) and dense[0].shape == (4, 65, 48)


# forwards of a user's own


class Walks(VisionTransformer):
    def forward_features(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        x = self._pos_embed(self.patch_embed(x))
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class Averages(Walks):
    """As MAE's fine-tuning does it: the mean of the patch tokens, then a norm."""

    def forward_features(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        x = self._pos_embed(self.patch_embed(x))
        for index in range(len(self.blocks)):
            x = self.blocks[index](x)
        return self.fc_norm(x[:, 1:, :].mean(dim=1))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return self.head(x)


class Bypasses(VisionTransformer):
    def forward_features(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        x = self._pos_embed(self.patch_embed(x))
        for block in self.blocks:
            x = x + block.attn(block.norm1(x))
            x = x + block.mlp(block.norm2(x))
        return self.norm(x)


class Adds(Walks):
    def forward_features(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        x = self._pos_embed(self.patch_embed(x))
        for block in self.blocks:
            x = 0.5 * block(x)
        return self.norm(x)


class Skips(Walks):
    def forward_features(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        return self.norm(self.blocks[::2](self._pos_embed(self.patch_embed(x))))


def test_a_looping_subclass_is_compressed(stir: Any, tiny: Tiny, images: Images) -> None:
    model, x = _own(Walks, stir), images()
    own = tiny()
    own.load_state_dict(model.state_dict())
    assert torch.equal(ttf.apply(model, **SOFT)(x), ttf.apply(own, **SOFT)(x))
    assert [layer.block for layer in ttf.trace(model, x)] == [3, 6, 9]


def test_a_mean_over_the_tokens_weighs_them(stir: Any, images: Images) -> None:
    model, x = ttf.apply(_own(Averages, stir, fc_norm=True, final_norm=False), **SOFT), images()
    tokens = model._pos_embed(model.patch_embed(x))
    for block in model.blocks:
        tokens = block(tokens)
    sizes = tokens.sizes[:, 1:, None]
    pooled = (tokens.x[:, 1:] * sizes).sum(1) / sizes.sum(1)
    torch.testing.assert_close(model(x), model.head(model.fc_norm(pooled)))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Bypasses, r"does not call blocks \[3, 6, 9\]"),
        (Adds, "arithmetic met the tokens of a compressed model"),
        (Skips, r"does not call blocks \[3, 9\]"),
    ],
)
def test_forwards_that_cannot_be_entered_are_refused_by_name(
    kind: type[VisionTransformer], message: str, stir: Any, images: Images
) -> None:
    model, x = _own(kind, stir), images()
    before, cost = model(x), ttf.measure.gmacs(model, (3, 32, 32))
    with pytest.raises(ValueError, match=f"^{kind.__name__} .*{message}"):
        ttf.apply(model, ratio=0.5)
    assert torch.equal(model(x), before) and ttf.measure.gmacs(model, (3, 32, 32)) == cost


def test_a_forward_that_cannot_be_tried_is_warned_of(stir: Any) -> None:
    class Two(Walks):
        def forward(self, x: Tensor, caption: Any) -> Any:  # type: ignore[override]
            return super().forward(x), caption.upper()

    with pytest.warns(UserWarning, match="Two has a forward of its own.*ttf.trace"):
        ttf.apply(_own(Two, stir), ratio=0.5)


def test_hooks_do_not_see_the_trial_run(stir: Any) -> None:
    model, fired = _watched(_own(Walks, stir))
    ttf.apply(model, ratio=0.5)
    assert not fired


# blocks that are cut, pruned, replaced


@pytest.mark.parametrize("pool", ["token", "avg", "map", "max"])
@pytest.mark.parametrize("options", [{}, {"prune_norm": True}, {"prune_head": False}], ids=str)
def test_pruned_models_are_short_and_can_be_restored(
    options: dict[str, Any], pool: str, tiny: Tiny, images: Images
) -> None:
    plain, x = tiny(global_pool=pool), images()
    model = ttf.apply(copy.deepcopy(plain), ratio=0.5)
    for each in (model, plain):
        each.prune_intermediate_layers([7], **options)
    assert model.forward_features(x).shape == (2, 17, 48)
    assert model(x).shape[-1] == plain(x).shape[-1]
    ttf.remove(model)
    assert torch.equal(model(x), plain(x))


def test_cut_and_replaced_blocks(tiny: Tiny, images: Images) -> None:
    model, x = ttf.apply(tiny(), ratio=0.5), images()
    model.blocks = model.blocks[:8]
    assert model.forward_features(x).shape == (2, 17, 48)
    model.blocks[4] = nn.Identity()
    assert model.forward_features(x).shape == (2, 17, 48)
    model.blocks[7] = tiny().blocks[7]  # not compressed, and behind a reduction
    with pytest.raises(TypeError, match="Tokens"):
        model(x)
    del model.blocks[7]
    ttf.remove(model)
    assert model.forward_features(x).shape == (2, 65, 48)


def test_a_new_pool_weighs_by_size_too(tiny: Tiny, images: Images) -> None:
    model, x = ttf.apply(tiny(), **SOFT), images()
    model.reset_classifier(10, "avg")
    other = tiny(global_pool="avg", fc_norm=False)
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(x), ttf.apply(other, **SOFT)(x))


@pytest.mark.parametrize("method", ["token_transform", "ats", "evit", "uniform_pool"])
@pytest.mark.parametrize("pool", ["token", "avg", "max", "avgmax", "map", "prr"])
def test_both_paths_through_the_head_agree(pool: str, method: str, tiny: Tiny, images: Images) -> None:
    try:
        model = tiny(global_pool=pool)
    except AssertionError:
        pytest.skip(f"this timm has no pool {pool}")
    x = images(3)
    ttf.apply(model, method, ratio=0.5)
    torch.testing.assert_close(model.forward_head(model.forward_features(x)), model(x), atol=0, rtol=0)
    torch.testing.assert_close(torch.cat([model(image[None]) for image in x]), model(x), atol=1e-4, rtol=1e-4)
