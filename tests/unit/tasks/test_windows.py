"""Segmentation: sliding windows, resizing, label maps."""

from __future__ import annotations

import itertools

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from ttf.tasks import segmentation as seg
from ttf.tasks import windows


class _Local(nn.Module):
    """A "segmenter" whose logits at a pixel depend on that pixel alone, so that windows change nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(3, 4, 1)
        self.seen: list[torch.Size] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images.shape)
        return self.mix(images)


class _Placed(_Local):
    """Its logits depend on where in its window a pixel lies."""

    def forward(self, images: Tensor) -> Tensor:
        ramp = torch.arange(images.shape[-1]).float() + 100 * torch.arange(images.shape[-2]).float().unsqueeze(1)
        return super().forward(images) + ramp


def _slowly(model: nn.Module, image: Tensor, window: int, stride: int) -> Tensor:
    """Every window on its own, and the mean of what was said of each pixel."""
    ys, xs = (sorted({min(at, side - window) for at in range(0, side, stride)}) for side in image.shape[-2:])
    said: list[Tensor] = []
    for y, x in itertools.product(ys, xs):
        said.append(torch.full((4, *image.shape[-2:]), torch.nan))
        said[-1][:, y : y + window, x : x + window] = model(image[None, :, y : y + window, x : x + window])[0]
    return torch.stack(said).nanmean(0)


def test_windows_end_at_the_border():
    found = [windows.starts(length, window=8, stride=4) for length in (8, 9, 12, 13, 16)]
    assert found == [[0], [0, 1], [0, 4], [0, 4, 5], [0, 4, 8]]


@pytest.mark.parametrize("batch_size", [1, 3, 100])
@pytest.mark.parametrize(("size", "window", "stride"), [((8, 8), 8, 8), ((13, 17), 8, 5), ((9, 24), 8, 8)], ids=str)
@torch.no_grad()
def test_windows_equal_a_plain_loop(size: tuple[int, int], window: int, stride: int, batch_size: int):
    model, image = _Placed(), torch.randn(3, *size)
    found = windows.slide(model, image, window, stride, batch_size)
    torch.testing.assert_close(found, _slowly(model, image, window, stride))
    assert max(shape[0] for shape in model.seen) <= batch_size


@torch.no_grad()
def test_one_window_is_the_whole_image():
    model, image = _Placed(), torch.randn(3, 8, 8)
    assert torch.equal(windows.slide(model, image, 8, 4), model(image[None])[0])
    assert torch.equal(windows.Inference(window=8).logits(model, image), windows.Inference().logits(model, image))


@torch.no_grad()
def test_small_images_are_enlarged_to_the_window():
    model, image = _Local(), torch.randn(3, 4, 10)
    large = F.interpolate(image[None], (8, 20), mode="bilinear", align_corners=False)
    torch.testing.assert_close(windows.slide(model, image, 8, 8), model(large)[0])
    assert windows.slide(model, torch.randn(3, 30, 1), 8, 8).shape == (4, 240, 8)
    with pytest.raises(ValueError, match="1000x1 pixels is too narrow for windows of 8"):
        windows.slide(model, torch.randn(3, 1000, 1), 8, 8)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((480, 640), (640, 853)), ((640, 480), (853, 640)), ((100, 1000), (256, 2560)), ((1, 9999), (1, 2560))],
)
def test_images_are_resized_by_the_shorter_side(size: tuple[int, int], expected: tuple[int, int]):
    assert windows.resized(size, 640, 2560) == expected
    image = Image.new("RGB", (size[1], size[0]), (255, 0, 127))
    prepared = windows.Inference(shorter=64).prepare(image)
    assert prepared.shape[1:] == windows.resized(size, 64, 256)
    torch.testing.assert_close(prepared[:, 0, 0], torch.tensor([1.0, -1.0, 127 / 127.5 - 1]))


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="window must be at least 1"):
        windows.Inference(window=0)
    with pytest.raises(ValueError, match="give window, or leave stride out"):
        windows.Inference(stride=4)
    with pytest.raises(ValueError, match="leaves gaps between windows: give at most 8"):
        windows.Inference(window=8, stride=9)


def test_logits_that_are_not_finite_are_refused():
    model = _Local()
    model.mix.bias.data[1] = torch.nan
    for inference in (windows.Inference(window=8), windows.Inference()):
        with pytest.raises(ValueError, match="NaN or infinite logits"):
            inference.logits(model, torch.zeros(3, 8, 8))


def test_the_label_map_is_that_of_all_logits_at_once():
    logits = torch.randn(40, 7, 9)
    for size in ((7, 9), (20, 31)):
        whole = F.interpolate(logits[None], size, mode="bilinear", align_corners=False)[0]
        assert torch.equal(seg.label_map(logits, size), whole.argmax(0))
