"""The patch embedding as a matrix product: the same numbers to rounding, and on a GPU a tenth of the time.

A convolution whose kernel is as large as its stride reads every pixel once. cuDNN pads its channels; a product of the
unfolded patches (B, n, 3 p p) with the kernel (E, 3 p p) pads nothing. Shapes: B images, n patches of p x p, E wide.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Model = TypeVar("Model", bound=nn.Module)
CHOICES = ("conv", "linear")


class PatchProduct(nn.Conv2d):
    """A convolution of patches that do not overlap, by one matrix product; its parameters are the convolution's."""

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) to (B, E, H // p, W // p); channels of the answer are contiguous."""
        (p, q), (height, width) = self.kernel_size, x.shape[-2:]
        rows, columns = height // p, width // q
        x = x[..., : rows * p, : columns * q]
        if x.is_contiguous(memory_format=torch.channels_last):  # the order in which pixels lie in memory
            patches = x.permute(0, 2, 3, 1).unflatten(2, (columns, q)).unflatten(1, (rows, p)).permute(0, 1, 3, 2, 4, 5)
            kernel = self.weight.permute(0, 2, 3, 1)
        else:
            patches = x.unflatten(3, (columns, q)).unflatten(2, (rows, p)).permute(0, 2, 4, 1, 3, 5)
            kernel = self.weight
        out = F.linear(patches.flatten(3).flatten(1, 2), kernel.flatten(1), self.bias)
        return out.transpose(1, 2).unflatten(2, (rows, columns))


def _is_of_patches(module: nn.Module) -> bool:
    if type(module) not in (nn.Conv2d, PatchProduct):
        return False
    assert isinstance(module, nn.Conv2d)
    return (
        module.in_channels == 3
        and module.kernel_size == module.stride
        and module.kernel_size[0] > 1
        and module.padding in ((0, 0), "valid")
        and module.dilation == (1, 1)
        and module.groups == 1
    )


def linear_patches(model: Model, on: bool = True) -> Model:
    """Turn the convolution of the patches into a matrix product, in place, or back.

    Parameters, buffers and ``state_dict`` keys stay; ``ttf.apply`` and ``ttf.remove`` leave it as it is.

    Args:
        model: with one convolution of the image whose kernel is its stride.
        on: False: a convolution again.

    Returns:
        ``model`` itself.

    Raises:
        ValueError: there is no such convolution.
    """
    found = [module for module in model.modules() if _is_of_patches(module)]
    if not found:
        raise ValueError(f"{type(model).__name__} has no convolution of patches that do not overlap: use patches=conv")
    for module in found:
        module.__class__ = PatchProduct if on else nn.Conv2d
    return model
