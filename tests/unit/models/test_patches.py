"""The patch embedding as a matrix product."""

from __future__ import annotations

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import ttf
from ttf.models.patches import PatchProduct, linear_patches


def _model() -> VisionTransformer:
    return VisionTransformer(img_size=32, patch_size=8, embed_dim=24, depth=4, num_heads=3, num_classes=5).eval()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (24, 40), (29, 33)])
def test_it_is_the_convolution(layout: torch.memory_format, height: int, width: int) -> None:
    conv = nn.Conv2d(3, 10, (8, 4), stride=(8, 4)).to(memory_format=layout)
    x = torch.randn(2, 3, height, width).to(memory_format=layout)
    expected = conv(x)
    out = linear_patches(conv)(x)
    assert type(conv) is PatchProduct and out.shape == expected.shape
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-5)
    assert out.flatten(2).transpose(1, 2).is_contiguous()  # as the blocks want their tokens
    gradients = torch.autograd.grad(out.square().sum(), list(conv.parameters()))
    torch.testing.assert_close(gradients, torch.autograd.grad(expected.square().sum(), list(conv.parameters())))


def test_a_model_keeps_its_parameters_and_goes_back() -> None:
    model, images = _model(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected, keys = model(images), list(model.state_dict())
        torch.testing.assert_close(linear_patches(model)(images), expected, atol=1e-5, rtol=1e-5)
        assert list(model.state_dict()) == keys
        short = ttf.apply(model, ratio=0.5, blocks=(1,))(images)
        assert type(ttf.remove(model).patch_embed.proj) is PatchProduct
        assert torch.equal(linear_patches(model, on=False)(images), expected)
        torch.testing.assert_close(ttf.apply(model, ratio=0.5, blocks=(1,))(images), short, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(3, 8, 7, stride=4),
        nn.Conv2d(3, 8, 8, stride=8, padding=1),
        nn.Conv2d(4, 8, 8, stride=8),
        nn.Identity(),
    ],
)
def test_others_are_refused(conv: nn.Module) -> None:
    with pytest.raises(ValueError, match="no convolution of patches that do not overlap: use patches=conv"):
        linear_patches(conv)
