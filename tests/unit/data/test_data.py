"""Data sets: the digit scenes, ImageNet's layout, preprocessing, files."""

from __future__ import annotations

import os

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import ImageNetInfo

from ttf.data.files import atomic_write
from ttf.data.imagenet import ImageNetFolder, ImageNetPart, Whole
from ttf.data.scenes import SIDE, SceneClassification, compose, digit_split
from ttf.data.subset import Shuffled
from ttf.data.transforms import preprocessing


def test_train_and_test_digits_are_disjoint():
    (train, train_labels), (test, test_labels) = digit_split("train"), digit_split("test")
    assert len(train) + len(test) == 1797 == len(train_labels) + len(test_labels)
    seen = {digit.tobytes() for digit in train}
    assert not [digit for digit in test if digit.tobytes() in seen]


def test_a_scene_is_a_function_of_its_number():
    first, again, other = compose(0, 5, "test"), compose(0, 5, "test"), compose(0, 6, "test")
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.depth, again.depth)
    assert not np.array_equal(first.image, other.image)


@pytest.mark.parametrize("split", ["train", "test"])
def test_annotations_fit_together(split):
    for index in range(40):
        scene = compose(3, index, split)
        assert scene.image.shape == (SIDE, SIDE, 3)
        assert scene.mask.shape == scene.depth.shape == (SIDE, SIDE)
        nearest = scene.mask[scene.depth == scene.depth[scene.mask > 0].min()]
        assert set(nearest.tolist()) == {scene.label + 1}  # the class is the nearest digit
        assert scene.label in scene.box_labels
        assert len(scene.boxes) == len(scene.box_labels) >= 1
        assert (scene.boxes[:, 2:] > scene.boxes[:, :2]).all()
        inside = np.zeros((SIDE, SIDE), bool)
        for x0, y0, x1, y1 in scene.boxes.astype(int):
            inside[y0:y1, x0:x1] = True
        assert not (scene.mask[~inside] > 0).any()
        assert np.isfinite(scene.depth).all() and (scene.depth > 0).all()


def test_patch_labels_are_those_of_the_patch_centres():
    image, label, patches = SceneClassification("train", 3, patch=8)[1]
    scene = compose(0, 1, "train")
    assert label == scene.label
    assert image.size == (SIDE, SIDE)
    assert patches.shape == (12, 12)
    assert patches[3, 5] == scene.mask[8 * 3 + 4, 8 * 5 + 4]


def test_scenes_end():
    with pytest.raises(IndexError):
        SceneClassification("test", 3)[3]
    with pytest.raises(ValueError, match="'train' or 'test'"):
        compose(0, 0, "val")


def _imagenet(root, wnids=("n01440764", "n01443537"), count=2):
    for wnid in wnids:
        (root / "val" / wnid).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(root / "val" / wnid / f"{number}.jpg")
    return root


def test_imagenet_labels_are_those_of_imagenet(tmp_path):
    data = ImageNetFolder(_imagenet(tmp_path, ("n01443537", "n15075141")))
    assert [label for _, label in data.samples] == [1, 1, 999, 999]  # goldfish, toilet tissue


def test_imagenet_errors_say_what_to_do(tmp_path):
    with pytest.raises(ValueError, match=r"no ImageNet at .*paths\.imagenet=ROOT.*val/<wnid>"):
        ImageNetFolder(tmp_path / "none")
    (tmp_path / "val").mkdir()
    with pytest.raises(ValueError, match="no classes"):
        ImageNetFolder(tmp_path)
    _imagenet(tmp_path, ("n01443537",))
    (tmp_path / "val" / "n01440764").mkdir()
    with pytest.raises(ValueError, match="class folder .*n01440764 is empty"):
        ImageNetFolder(tmp_path)
    (tmp_path / "val" / "n01443537" / "more").mkdir()
    with pytest.raises(ValueError, match="n01443537/more is a folder within a class, and is not read"):
        ImageNetFolder(tmp_path)
    (tmp_path / "val" / "n01443537" / "more").rename(tmp_path / "val" / "n01443537" / ".thumbnails")
    (tmp_path / "val" / "n01440764").rename(tmp_path / "val" / "cats")
    with pytest.raises(ValueError, match="cats .*are no ImageNet-1k classes"):
        ImageNetFolder(tmp_path)


@pytest.fixture
def extracted(tmp_path, monkeypatch):
    """Maker of folders like ImageNet's own, with 2 (val) or 1 to 3 (train) empty files in each of the 1000 classes."""
    monkeypatch.setattr("ttf.data.imagenet.WHOLE", {"val": Whole(2000, 2, 2), "train": Whole(2000, 1, 3)})

    def make(split="val"):
        for number, wnid in enumerate(ImageNetInfo("imagenet-1k").label_names()):
            (tmp_path / split / wnid).mkdir(parents=True)
            for k in (2 * number + 1, 2 * number + 2):
                name = f"ILSVRC2012_val_{k:08}.JPEG" if split == "val" else f"{wnid}_{k}.JPEG"
                (tmp_path / split / wnid / name).touch()
        return tmp_path / split

    return make


def test_the_whole_of_imagenet_is_accepted(extracted):
    root = extracted().parent
    data = ImageNetFolder(root)
    assert len(data) == 2000
    assert [(path.name, label) for path, label in data.samples[2:4]] == [
        ("ILSVRC2012_val_00000003.JPEG", 1),
        ("ILSVRC2012_val_00000004.JPEG", 1),
    ]
    extracted("train")
    assert len(ImageNetFolder(root, "train", complete=True)) == 2000


def test_half_an_imagenet_is_noticed(extracted):
    folder = extracted()
    for wnid, files in (("n01440764", 1), ("n01443537", 2), ("n15075141", 2)):
        for file in sorted((folder / wnid).iterdir())[:files]:
            file.unlink()
    (folder / "n15075141").rmdir()
    with pytest.raises(ValueError, match="998 of 1000 classes and 1995 of 2000 images") as caught:
        ImageNetFolder(folder.parent)
    for part in (
        "n01440764 (1 images), n01443537 (missing), n15075141 (missing)",
        "task.data.imagenet.complete=false",
    ):
        assert part in str(caught.value)
    (folder / "n01443537").rmdir()
    assert len(ImageNetFolder(folder.parent, complete=False)) == 1995


def test_half_a_training_set_is_noticed(extracted):
    folder = extracted("train")
    (folder / "n01440764" / "n01440764_1.JPEG").unlink()
    with pytest.raises(ValueError, match="1000 of 1000 classes and 1999 of 2000 images; extract it again"):
        ImageNetFolder(folder.parent, "train")


def test_what_comes_out_of_the_tar_has_to_be_sorted(tmp_path):
    (tmp_path / "val").mkdir()
    for number in range(3):
        (tmp_path / "val" / f"ILSVRC2012_val_{number:08}.JPEG").touch()
    with pytest.raises(ValueError, match=r"holds 3 images outside of class folders.*valprep\.sh in .*/val"):
        ImageNetFolder(tmp_path)


def test_other_sets_may_be_any_subset_unless_they_must_be_whole(tmp_path):
    _imagenet(tmp_path)
    assert len(ImageNetFolder(tmp_path)) == 4
    with pytest.raises(ValueError, match="2 of 1000 classes and 4 of 50000 images"):
        ImageNetFolder(tmp_path, complete=True)


def test_the_photographs_are_a_subset(shared):
    assert len(ImageNetFolder(shared / "data" / "nips17")) == 1000


def test_digest_follows_the_files(tmp_path):
    _imagenet(tmp_path)
    before = ImageNetFolder(tmp_path).digest()
    assert before == ImageNetFolder(tmp_path).digest()
    (tmp_path / "val" / "n01440764" / "1.jpg").unlink()
    assert before != ImageNetFolder(tmp_path).digest()


def test_preprocessing_comes_from_the_weights():
    augreg = timm.create_model("vit_tiny_patch16_224.augreg_in21k_ft_in1k", depth=1)
    deit = timm.create_model("deit_tiny_patch16_224.fb_in1k", depth=1)
    assert preprocessing(augreg).mean == (0.5, 0.5, 0.5)
    assert preprocessing(deit).mean == (0.485, 0.456, 0.406)
    assert preprocessing(deit).crop_pct == 0.9
    assert preprocessing(timm.create_model("deit_tiny_patch16_224", img_size=64, depth=1)).input_size == (3, 64, 64)
    image = preprocessing(augreg).build()(Image.new("RGB", (300, 260), (255, 255, 255)))
    assert image.shape == (3, 224, 224)
    assert torch.allclose(image, torch.ones(()))


def test_atomic_write_leaves_the_old_file_on_failure(tmp_path):
    path = tmp_path / "row.json"
    path.write_text("old")

    def full(temporary):
        temporary.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(ValueError, match="No space left on device.*free some space"):
        atomic_write(path, full)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["row.json"]


def test_a_part_is_what_an_evaluation_with_the_same_settings_looks_at(tmp_path):
    root = _imagenet(tmp_path, count=6)
    whole = ImageNetFolder(root)
    evaluated = [whole.samples[index] for index in Shuffled(whole, 5, seed=3, skip=4).indices]
    assert ImageNetPart(root=root, limit=5, skip=4, seed=3).samples == evaluated
    halves = [set(ImageNetPart(root=root, limit=6, skip=skip).samples) for skip in (0, 6)]
    assert not halves[0] & halves[1] and halves[0] | halves[1] == set(whole.samples)
    with pytest.raises(ValueError, match=r"limit=9, and .* has 8 images behind 4: take fewer"):
        ImageNetPart(root=root, limit=9, skip=4)
