"""Boxes: data sets and what is wrong with them, matches, COCO's numbers, agreement of two detectors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from ttf import metrics
from ttf.data.detection import BCCD, Boxes, CocoFormat
from ttf.data.reading import BadImageError
from ttf.data.scene_boxes import SceneBoxes
from ttf.data.scenes import compose_apart
from ttf.errors import MissingError
from ttf.metrics.detection import drawn, numbers
from ttf.metrics.outcomes import stack
from ttf.models.detector import Found
from ttf.tasks.detection import Detection
from ttf.tasks.matching import agreement, match

CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 90, "name": "dog"}]


def content() -> dict[str, Any]:
    """Three images: an object and a crowd region, nothing, and a box that leaves the image."""
    images = [{"id": i, "file_name": f"{i}.png", "width": 40, "height": 30} for i in (7, 9, 30)]
    boxes = [(7, 3, [4, 4, 10, 12], 0), (7, 90, [20, 2, 15, 20], 1), (30, 90, [30, 20, 20, 30], 0)]
    annotations = [
        {"id": n, "image_id": i, "category_id": c, "bbox": box, "area": box[2] * box[3], "iscrowd": crowd}
        for n, (i, c, box, crowd) in enumerate(boxes, 1)
    ]
    return {"images": images, "annotations": annotations, "categories": CATEGORIES}


def write(root: Path, data: Any, images: tuple[int, ...] = (7, 9, 30)) -> Path:
    """A data set in COCO's layout."""
    (root / "val2017").mkdir(parents=True)
    (root / "annotations").mkdir()
    for number in images:
        Image.new("RGB", (40, 30), (number, 90, 120)).save(root / "val2017" / f"{number}.png")
    text = data if isinstance(data, str) else json.dumps(data)
    (root / "annotations" / "instances_val2017.json").write_text(text)
    return root


def test_coco(tmp_path: Path):
    data = CocoFormat(write(tmp_path, content()))
    assert data.classes == ("cat", "dog") and data.categories == (3, 90) and len(data) == 3
    image, boxes = data[0]
    assert image.size == (40, 30) and boxes.xyxy.tolist() == [[4, 4, 14, 16], [20, 2, 35, 22]]
    assert boxes.labels.tolist() == [0, 1] and boxes.crowd.tolist() == [False, True]
    assert len(data[1][1]) == 0 and data.most == 2
    assert data.boxes[2].xyxy.tolist() == [[30, 20, 50, 50]]  # as it is: the official evaluation takes it so, too


def test_the_digest_sees_boxes(tmp_path: Path):
    moved = content()
    moved["annotations"][0]["bbox"][0] = 5
    one, other = CocoFormat(write(tmp_path / "a", content())), CocoFormat(write(tmp_path / "b", moved))
    assert one.digest() != other.digest() and one.digest() == CocoFormat(tmp_path / "a").digest()


def _changed(part: str, place: int, **change: Any) -> dict[str, Any]:
    data = content()
    data[part][place] = {**data[part][place], **change}
    return data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("{broken", "cannot be read as json"),
        ("[]", "has no list of images, annotations, categories"),
        ({"images": [], "annotations": [], "categories": []}, "lists no images"),
        (_changed("annotations", 1, category_id=4), "annotation 2 has category 4: the file lists 3, 90"),
        (_changed("annotations", 0, image_id=8), "annotation 1 is of image 8, which the file does not list"),
        (_changed("annotations", 0, bbox=[0, 0, -4, 3]), r"annotation 1 has the box \[0, 0, -4, 3\]"),
        (_changed("annotations", 0, bbox=[0, 0, 4]), "annotation 1 has the box"),
        (_changed("images", 1, id=7), "lists images twice: 7"),
        (_changed("images", 1, file_name="gone.png"), "1 of 3 images are not there: .*gone.png"),
        ({**content(), "annotations": [{"id": 1}]}, "an entry that COCO's format does not allow"),
    ],
)
def test_what_is_wrong_with_coco(tmp_path: Path, data: Any, message: str):
    with pytest.raises(ValueError, match=message) as caught:
        CocoFormat(write(tmp_path, data))
    assert "\n" not in str(caught.value)


def test_missing_data_says_what_to_fetch(tmp_path: Path):
    with pytest.raises(MissingError, match="paths.coco=ROOT.*val2017.zip.*annotations_trainval2017.zip"):
        CocoFormat(tmp_path)
    with pytest.raises(MissingError, match="paths.bccd=ROOT"):
        BCCD(tmp_path)


def test_an_empty_file_is_a_bad_image(tmp_path: Path):
    data = CocoFormat(write(tmp_path, content()))
    data.files[1].write_bytes(b"")
    with pytest.raises(BadImageError, match="on_bad_image=skip"):
        data[1]


def _voc(root: Path, text: str) -> Path:
    base = root / "BCCD"
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (base / folder).mkdir(parents=True)
    Image.new("RGB", (40, 30)).save(base / "JPEGImages" / "a.jpg")
    (base / "Annotations" / "a.xml").write_text(text)
    (base / "ImageSets" / "Main" / "test.txt").write_text("a\n")
    return root


def _object(name: str, *box: int) -> str:
    corners = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    return f"<object><name>{name}</name><bndbox>{corners}</bndbox></object>"


def test_voc(tmp_path: Path):
    text = f"<annotation>{_object('WBC', 1, 2, 11, 22)}{_object('RBC', 5, 5, 5, 9)}</annotation>"
    data = BCCD(_voc(tmp_path, text))
    assert data.boxes[0].xywh.tolist() == [[1, 2, 10, 20]] and data.boxes[0].labels.tolist() == [1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation>", "cannot be read as labels"),
        (f"<annotation>{_object('cell', 1, 2, 3, 4)}</annotation>", "has objects cell: known are RBC, WBC, Platelets"),
        ("<annotation><object><name>RBC</name></object></annotation>", "cannot be read as labels"),
        (f"<annotation>{_object('RBC', 9, 2, 3, 4)}</annotation>", r"has a box that is none, \[9.0, 2.0, 3.0, 4.0\]"),
    ],
)
def test_what_is_wrong_with_voc(tmp_path: Path, text: str, message: str):
    with pytest.raises(ValueError, match=message):
        BCCD(_voc(tmp_path, text))
    with pytest.raises(ValueError, match="the splits of BCCD are"):
        BCCD(tmp_path, "dev")


# matches and numbers


def found(*rows: tuple[float, float, float, float, float, int]) -> Found:
    """Detections: left, top, right, bottom, score, label."""
    table = torch.tensor(rows, dtype=torch.float64).reshape(-1, 6)
    return Found(table[:, :4], table[:, 4], table[:, 5].long())


TRUTH = Boxes.of([((0, 0, 10, 10), 0, 100, False), ((20, 20, 10, 10), 1, 100, False), ((50, 0, 40, 40), 1, 1600, True)])
PERFECT = found((0, 0, 10, 10, 0.9, 0), (20, 20, 30, 30, 0.8, 1))


def _outcomes(*each: tuple[Found, Boxes]) -> dict[str, Tensor]:
    return stack(
        [{**match(f, t, 2), **agreement(f, PERFECT), "image": torch.tensor(i)} for i, (f, t) in enumerate(each)]
    )


def test_perfect_detections():
    values = numbers(_outcomes((PERFECT, TRUTH)))
    assert [values[name].item() for name in ("ap", "ar100", "ap_small")] == pytest.approx([1, 1, 1])
    assert torch.isnan(values["ap_large"])


def test_detections_in_a_crowd_count_neither_way():
    crowd = found((0, 0, 10, 10, 0.9, 0), (20, 20, 30, 30, 0.8, 1), (52, 2, 60, 10, 0.95, 1), (60, 10, 70, 20, 0.97, 1))
    assert numbers(_outcomes((crowd, TRUTH)))["ap"].item() == pytest.approx(1)


def test_images_without_objects_only_hold_mistakes():
    none = Boxes.of([])
    assert torch.isnan(numbers(_outcomes((PERFECT, none)))["ap"])
    both = numbers(_outcomes((found((0, 0, 5, 5, 0.95, 0)), none), (PERFECT, TRUTH)))
    assert both["ap"].item() == pytest.approx((0.5 + 1) / 2)
    assert numbers(_outcomes((found(), TRUTH)))["ap"].item() == 0
    row = metrics.measure("det", _outcomes((PERFECT, none)))
    assert row["ap"] == {"value": -1.0, "ci95": [-1.0, -1.0]} and metrics.named("det", "ap").text(-1.0) == ""
    with pytest.raises(ValueError, match="there is no AP of these images: no object in them is annotated"):
        Detection.metrics(Detection.__new__(Detection), _outcomes((PERFECT, none)))


def test_weights_are_repeated_images():
    parts = [(found((0, 0, 10, 9, 0.6, 0)), TRUTH), (PERFECT, TRUTH), (found((3, 3, 12, 12, 0.7, 0)), TRUTH)]
    repeated = numbers(_outcomes(parts[0], parts[1], parts[1], parts[2]))
    weighted = numbers(_outcomes(*parts), torch.tensor([[1.0, 2.0, 1.0]], dtype=torch.float64))
    for name in ("ap", "ap50", "ar100", "ar1"):
        assert weighted[name].item() == pytest.approx(repeated[name].item(), abs=1e-9), name


def test_differences_are_of_the_same_sets():
    good = _outcomes(*[(PERFECT, TRUTH)] * 6)
    shift = [(found((1, 0, 11, 10, 0.9, 0), (20, 20, 30, 30, 0.8, 1)), TRUTH)] * 6
    ap = metrics.named("det", "ap")
    lost = ap.lost_between(good, _outcomes(*shift))
    assert lost is not None and lost.value > 5 and lost.low == pytest.approx(lost.high)  # all images are alike
    assert drawn(6, 20).sum(1).tolist() == [6.0] * 20


def test_agreement():
    assert {k: v.item() for k, v in agreement(found(), found()).items()} == {"agreement": 1.0, "quality": 1.0}
    same = agreement(PERFECT, PERFECT)
    assert (same["agreement"].item(), same["quality"].item()) == (1.0, 1.0)
    other = agreement(found((0, 0, 10, 5, 0.9, 0), (20, 20, 30, 30, 0.8, 0)), PERFECT)  # one half, one other category
    assert (other["agreement"].item(), other["quality"].item()) == pytest.approx((0.5, 0.25))
    unsure = agreement(found((0, 0, 10, 10, 0.2, 0)), PERFECT)
    assert unsure["agreement"].item() == 0


def test_scenes_have_their_boxes():
    data = SceneBoxes("test", 4, seed=3)
    image, boxes = data[1]
    scene = compose_apart(3, 1, "test")
    assert image.size == (96, 96) and boxes.labels.tolist() == scene.box_labels.tolist()
    assert torch.equal(boxes.xyxy.float(), torch.from_numpy(scene.boxes))
    assert torch.equal(boxes.areas, boxes.xywh[:, 2:].prod(1)) and not boxes.crowd.any()
    assert (
        all(len(data[i][1]) <= data.most for i in range(4))
        and len({data.digest(), SceneBoxes("test", 5).digest()}) == 2
    )
    with pytest.raises(IndexError):
        data[4]
