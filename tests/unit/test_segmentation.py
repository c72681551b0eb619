"""Segmentation: data sets and their layouts, sliding windows, scores."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from ttf.data.imagenet import BadImageError
from ttf.data.segmentation import ADE20K, Augmentation, CamVid, Cityscapes, SegmentationFolder
from ttf.metrics import measure
from ttf.metrics.segmentation import resampled, scores
from ttf.tasks import segmentation as seg
from ttf.tasks import windows

HEIGHT, WIDTH = 6, 8


def _save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def _picture(path: Path) -> None:
    _save(path, np.full((HEIGHT, WIDTH, 3), 100, np.uint8))


def _mask(path: Path, *values: int) -> None:
    _save(path, np.resize(np.array(values, np.uint8), (HEIGHT, WIDTH)))


def _ade20k(root: Path) -> Path:
    for stem in ("b", "a"):
        _picture(root / "images" / "validation" / f"{stem}.jpg")
        _mask(root / "annotations" / "validation" / f"{stem}.png", 0, 1, 150)
    return root / "annotations" / "validation" / "a.png"


def _camvid(root: Path) -> Path:
    _picture(root / "images" / "test" / "a.png")
    _mask(root / "annotations" / "test" / "a.png", 0, 10, 11)
    return root / "annotations" / "test" / "a.png"


def _cityscapes(root: Path, kind: str = "labelIds", *values: int) -> Path:
    scene = "ulm_000000_000019"
    _picture(root / "leftImg8bit" / "val" / "ulm" / f"{scene}_leftImg8bit.png")
    mask = root / "gtFine" / "val" / "ulm" / f"{scene}_gtFine_{kind}.png"
    _mask(mask, *values or (0, 7, 33, 24))
    return mask


def test_ade20k_labels_are_shifted_by_one(tmp_path: Path):
    _ade20k(tmp_path)
    data = ADE20K(tmp_path)
    image, mask = data[0]
    assert [file.stem for file, _ in data.samples] == ["a", "b"]
    assert (image.size, image.mode) == ((WIDTH, HEIGHT), "RGB")
    assert mask.shape == (HEIGHT, WIDTH) and mask.dtype == torch.int64
    assert mask.unique().tolist() == [0, 149, 255]
    assert len(data.classes) == len(data.palette) == 150
    assert (data.classes[0], data.classes[149], data.palette[149]) == ("wall", "flag", (92, 0, 255))


def test_camvid_has_eleven_classes_and_a_void(tmp_path: Path):
    _camvid(tmp_path)
    data = CamVid(tmp_path, "test")
    assert data[0][1].unique().tolist() == [0, 10, 255]
    assert len(data.classes) == len(data.palette) == 11
    assert (data.classes[3], data.palette[3]) == ("road", (128, 64, 128))


def test_cityscapes_ids_become_the_nineteen_labels(tmp_path: Path):
    _cityscapes(tmp_path, "labelIds", *range(34))
    data = Cityscapes(tmp_path)
    flat = data[0][1].flatten()[:34].tolist()
    assert [(i, label) for i, label in enumerate(flat) if label != 255] == [
        (7, 0), (8, 1), (11, 2), (12, 3), (13, 4), (17, 5), (19, 6), (20, 7), (21, 8), (22, 9), (23, 10), (24, 11),
        (25, 12), (26, 13), (27, 14), (28, 15), (31, 16), (32, 17), (33, 18),
    ]  # fmt: skip
    assert (data.classes[11], data.palette[18]) == ("person", (119, 11, 32))


def test_cityscapes_takes_labels_where_there_are_no_ids(tmp_path: Path):
    _cityscapes(tmp_path, "labelTrainIds", 0, 18, 255)
    assert Cityscapes(tmp_path)[0][1].unique().tolist() == [0, 18, 255]
    _cityscapes(tmp_path, "labelIds", 24)
    assert Cityscapes(tmp_path)[0][1].unique().tolist() == [11]
    _cityscapes(tmp_path, "labelIds", 34, 40, 7)
    with pytest.raises(ValueError, match=r"labels \[34, 40\], and Cityscapes has 0-33, 255"):
        Cityscapes(tmp_path)[0]


SETS = [(_ade20k, ADE20K), (_camvid, CamVid), (_cityscapes, Cityscapes)]


@pytest.mark.parametrize(("make", "kind"), SETS, ids=lambda value: value.__name__)
def test_broken_sets_name_the_file(make: Callable[[Path], Path], kind: type[SegmentationFolder], tmp_path: Path):
    with pytest.raises(ValueError, match=rf"no {kind.__name__} at .*paths\.{kind.__name__.lower()}=ROOT; expected R"):
        kind(tmp_path)
    mask = make(tmp_path)
    before = kind(tmp_path).digest()
    assert kind(tmp_path).digest() == before
    _mask(mask, 200)
    with pytest.raises(ValueError, match=rf"{mask.name} has labels \[200\], and {kind.__name__} has "):
        kind(tmp_path)[0]
    assert kind(tmp_path).digest() != before
    _picture(mask)
    with pytest.raises(ValueError, match=rf"{mask.name} is a picture of mode RGB"):
        kind(tmp_path)[0]
    _save(mask, np.zeros((HEIGHT, WIDTH + 1), np.uint8))
    with pytest.raises(ValueError, match=rf"has 8x6 pixels and its mask .*{mask.name} has 9x6"):
        kind(tmp_path)[0]
    mask.write_bytes(b"no picture")
    with pytest.raises(BadImageError, match=rf"{mask.name} cannot be read"):
        kind(tmp_path)[0]
    mask.unlink()
    with pytest.raises(ValueError, match=rf"1 of . images have no mask: .*{mask.name}; expected ROOT"):
        kind(tmp_path)


def test_a_broken_image_and_an_empty_folder_are_named(tmp_path: Path):
    _camvid(tmp_path)
    image = tmp_path / "images" / "test" / "a.png"
    image.write_bytes(image.read_bytes()[:40])
    with pytest.raises(BadImageError, match=r"a\.png cannot be read"):
        CamVid(tmp_path)[0]
    image.unlink()
    with pytest.raises(ValueError, match="no images of CamVid in .*expected ROOT/images/test"):
        CamVid(tmp_path)


def test_augmentation_moves_image_and_mask_together():
    rows = torch.arange(48).unsqueeze(1).expand(48, 64)
    image = Image.fromarray((rows * 5).byte().unsqueeze(-1).expand(-1, -1, 3).contiguous().numpy())
    vary = Augmentation((40, 40), shorter=48)
    vary.steps.transforms = [step for step in vary.steps.transforms if "Photometric" not in type(step).__name__]
    for _ in range(20):
        pixels, mask = vary(image, rows)
        assert pixels.shape == (3, 40, 40) and pixels.dtype == torch.float32
        assert mask.shape == (40, 40) and mask.dtype == torch.int64
        inside = mask != 255
        assert bool((pixels[0][~inside] == 0).all())
        drawn = (pixels[0][inside] + 1) * 255 / 10
        assert (drawn - mask[inside]).abs().max() < 1.6  # a pixel or so of interpolation


def test_augmentation_varies_size_side_and_colours():
    generator = torch.Generator().manual_seed(0)
    image = Image.fromarray(torch.randint(0, 256, (40, 60, 3), generator=generator).byte().numpy())
    vary, mask = Augmentation((40, 40), shorter=40), torch.zeros(40, 60, dtype=torch.int64)
    found = [vary(image, mask) for _ in range(8)]
    assert all(not torch.equal(found[0][0], other) for other, _ in found[1:])
    filled = {int((labels == 255).sum()) for _, labels in found}
    assert len(filled) > 1 and 0 in filled  # smaller images leave something to fill up


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


def test_scores_of_an_example_by_hand():
    mask = torch.tensor([[0, 0, 1], [1, 1, 255]])
    answer = torch.tensor([[0, 1, 1], [1, 3, 2]])
    matrix = seg.confusion(answer, mask, 5)
    assert matrix.nonzero().tolist() == [[0, 0], [0, 1], [1, 1], [1, 3]] and matrix.sum() == 5
    found = scores(seg.areas(matrix))
    # 2 is called where nothing counts, 4 is nowhere: both have no score; 3 is called once and is nowhere: 0
    nan = float("nan")
    torch.testing.assert_close(found.iou, torch.tensor([1 / 2, 2 / 4, nan, 0.0, nan]).double(), equal_nan=True)
    torch.testing.assert_close(found.accuracy, torch.tensor([1 / 2, 2 / 3, nan, nan, nan]).double(), equal_nan=True)
    assert found.miou.item() == pytest.approx(1 / 3)
    assert found.macc.item() == pytest.approx(7 / 12)
    assert found.aacc.item() == pytest.approx(3 / 5)


def _numpy_scores(answers: np.ndarray, masks: np.ndarray, classes: int) -> tuple[float, float, float]:
    """mIoU, mean accuracy and pixel accuracy class by class, from sets of pixels."""
    counted = masks != 255
    ious, accuracies = [], []
    for label in range(classes):
        called, truth = (answers == label) & counted, (masks == label) & counted
        if (called | truth).any():
            ious.append((called & truth).sum() / (called | truth).sum())
        if truth.any():
            accuracies.append((called & truth).sum() / truth.sum())
    return float(np.mean(ious)), float(np.mean(accuracies)), float((answers == masks)[counted].mean())


def test_scores_equal_those_of_sets_of_pixels():
    generator = np.random.default_rng(0)
    masks = generator.choice([*range(7), 255], (6, 10, 11))
    answers = np.where(generator.random(masks.shape) < 0.6, masks % 255, generator.integers(0, 9, masks.shape))
    parts = [seg.confusion(torch.tensor(a), torch.tensor(m), 9) for a, m in zip(answers, masks, strict=True)]
    pixels = seg.areas(torch.stack(parts))
    assert pixels.shape == (6, 3, 9)
    whole = scores(pixels.sum(0))
    expected = _numpy_scores(answers, masks, 9)
    assert (whole.miou.item(), whole.macc.item(), whole.aacc.item()) == pytest.approx(expected)
    torch.testing.assert_close(whole.iou, scores(seg.areas(torch.stack(parts).sum(0))).iou, equal_nan=True)


def test_labels_that_the_model_does_not_know_are_refused():
    with pytest.raises(ValueError, match="label 7 and the model knows 5 classes"):
        seg.confusion(torch.zeros(2, 2).long(), torch.full((2, 2), 7), 5)
    assert seg.confusion(torch.zeros(2, 2).long(), torch.full((2, 2), 255), 5).sum() == 0


def test_sets_are_drawn_from_the_images():
    pixels = torch.randint(1, 50, (30, 3, 4), generator=torch.Generator().manual_seed(0))
    pixels[:, 1:] += pixels[:, :1]  # at least as many pixels as are right
    found = resampled(pixels, times=400)
    assert abs(found.miou.mean() - scores(pixels.sum(0)).miou) < 0.01 and 0 < found.miou.std() < 0.1
    assert torch.equal(found.miou, resampled(pixels, times=400).miou)
    same = resampled(pixels[:1].expand(30, -1, -1), times=5)
    torch.testing.assert_close(same.miou, scores(pixels[0]).miou.expand(5))
    shift = resampled(pixels + torch.tensor([5, 5, 5]).view(3, 1), times=400).miou - found.miou
    assert bool((shift > 0).all())  # set by set, the better model is better


def test_divergence_of_two_classes_by_hand():
    base = torch.tensor([0.5, 0.75]).log().view(2, 1).expand(2, 2)  # p is 0.4, 0.6 at both pixels
    ours = torch.tensor([[0.4, 0.8], [0.6, 0.2]]).log() + 3.0
    kl, agreement = seg.divergence(ours.unsqueeze(1), base.unsqueeze(1))
    assert kl.item() == pytest.approx((0.4 * math.log(0.4 / 0.8) + 0.6 * math.log(0.6 / 0.2)) / 2, abs=1e-6)
    assert agreement.item() == 0.5


def test_a_row_of_figures():
    base = torch.randn(5, 6, 8)
    mask = seg.label_map(base, (12, 16))
    same = seg.outcome(base, base, mask)
    other = seg.outcome(torch.randn(5, 6, 8), base, mask)
    assert same["kl"] == 0 and same["agreement"] == 1 and other["kl"] > 0 and other["agreement"] < 1
    outcomes = {name: torch.stack([same[name], other[name]]) for name in same}
    found = measure("seg", outcomes)
    assert list(found) == ["miou", "aacc", "macc", "agreement", "kl"]
    assert found["miou"]["value"] == pytest.approx(100 * scores(outcomes["areas"].sum(0)).miou.item())
    assert all(figure["ci95"][0] <= figure["value"] <= figure["ci95"][1] for figure in found.values())
    perfect = measure("seg", {name: torch.stack([same[name]] * 2) for name in same})
    assert [perfect[name]["value"] for name in ("miou", "aacc", "macc", "agreement", "kl")] == [100, 100, 100, 100, 0]


@pytest.mark.real
def test_camvid_is_what_the_readme_says(shared: Path):
    sets = {split: CamVid(shared / "data" / "camvid", split) for split in ("train", "val", "test")}
    assert {split: len(data) for split, data in sets.items()} == {"train": 367, "val": 101, "test": 233}
    counts = torch.stack([torch.bincount(sets["val"][i][1].flatten(), minlength=256) for i in range(0, 101, 10)]).sum(0)
    assert {CamVid.classes[i] for i in counts[:11].topk(2).indices} == {"building", "road"}
