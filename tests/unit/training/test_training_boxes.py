"""Training detectors: what becomes of boxes, which places find them, the loss and its figure."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from ttf.data.detection import Boxes
from ttf.models.detector import Maps, boxes_around, centres, found, swin_mini
from ttf.training.boxes import Augmentation, AveragePrecision, Detection, Preparation, assigned, loss

BOXES = Boxes.of([((16, 8, 32, 16), 2, 512, False), ((60, 40, 40, 40), 0, 1600, True), ((0, 0, 6, 6), 1, 36, False)])


def _image() -> Image.Image:
    image = Image.new("RGB", (80, 64))
    image.paste((255, 255, 255), (16, 8, 48, 24))  # the first box
    return image


def test_boxes_follow_the_size():
    pixels, wanted = Preparation((32, 40), most=4)(_image(), BOXES)
    assert pixels.shape == (3, 32, 40) and wanted[:, 4].tolist() == [2, 1, -1, -1]  # the crowd is left out
    assert wanted[0, :4].tolist() == [8, 4, 24, 12]
    with pytest.raises(ValueError, match="an image has 2 boxes"):
        Preparation((32, 40), most=1)(_image(), BOXES)


@pytest.mark.parametrize("seed", range(8))
def test_boxes_stay_on_what_they_show(seed: int):
    torch.manual_seed(seed)
    pixels, wanted = Augmentation((64, 80), brightness=0.0, shift=6)(_image(), BOXES)
    left, top, right, bottom = wanted[wanted[:, 4] == 2][0, :4].round().int().tolist()
    bright = pixels[0] > 0.5
    rows, columns = bright.any(1).nonzero().squeeze(1), bright.any(0).nonzero().squeeze(1)
    assert abs(int(rows[0]) - top) <= 1 and abs(int(rows[-1]) + 1 - bottom) <= 1
    assert abs(int(columns[0]) - left) <= 1 and abs(int(columns[-1]) + 1 - right) <= 1


def test_a_place_finds_the_smallest_box_whose_middle_is_near():
    boxes = torch.tensor([[[0.0, 0, 64, 64], [16, 16, 32, 32], [-1, -1, -1, -1]]])
    labels = torch.tensor([[1, 0, -1]])
    points = centres(8, 8, 8, boxes)
    chosen, which = assigned(boxes, labels, points, 8)
    at = {tuple(point): label for point, label in zip(points.tolist(), chosen[0].tolist(), strict=True)}
    assert (at[28, 28], at[20, 20], at[36, 36], at[4, 4]) == (0, 0, 1, -1)
    assert which[0, points.tolist().index([28, 28])].tolist() == [16, 16, 32, 32]


def test_right_maps_are_found_and_score_full():
    wanted = torch.full((1, 3, 5), -1.0)
    wanted[0, 0] = torch.tensor([12.0, 12, 36, 36, 1])
    points = centres(6, 6, 8, wanted)
    labels, boxes = assigned(wanted[..., :4], wanted[..., 4].long(), points, 8)
    distances = torch.cat((points - boxes[0, :, :2], boxes[0, :, 2:] - points), dim=1).clamp_min(0.1)
    classes = torch.full((1, 2, 36), -20.0)
    classes[0, 1, labels[0] == 1] = 20.0
    maps = Maps(classes.view(1, 2, 6, 6), distances.t().reshape(1, 4, 6, 6), torch.full((1, 1, 6, 6), 20.0))
    boxes_there = boxes_around(points, distances)[labels[0] == 1]
    assert torch.equal(boxes_there, torch.tensor([12.0, 12, 36, 36]).expand_as(boxes_there))
    (only,) = found(Maps(*(part[0] for part in maps)), 8, (48, 48)).boxes
    assert only.tolist() == [12, 12, 36, 36]
    score = AveragePrecision()
    assert score.percent(score.of_batch(maps, wanted)) == pytest.approx(100)
    worse = maps._replace(distances=maps.distances * 1.5)
    assert loss(worse, wanted, 8) > loss(maps, wanted, 8)


def test_images_without_boxes_train_too():
    objective = Detection(swin_mini())
    value = objective(torch.zeros(1, 3, 64, 64), torch.full((1, 2, 5), -1.0))
    value.backward()
    assert torch.isfinite(value)
    with pytest.raises(ValueError, match="no label smoothing"):
        Detection(swin_mini(), label_smoothing=0.1)
