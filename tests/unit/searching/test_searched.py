"""Schedules with searched numbers of tokens, and their files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import ttf
from ttf.models.vit_mini import vit_mini
from ttf.searched import FOLDER, Searched, chosen, load, save, shipped

SCHEDULE = Searched((144, 144, 90, 90, 60, 60, 60, 60, 40, 40, 40, 1), 144)


def test_kept_numbers():
    left, found = 144, []
    for block in range(12):
        left = SCHEDULE.kept(block, left)
        found.append(left)
    assert tuple(found) == SCHEDULE.counts
    assert SCHEDULE.blocks == (2, 4, 8, 11) and SCHEDULE.drops_behind_last


def test_images_of_other_sizes_keep_the_same_shares():
    assert [SCHEDULE.kept(block, n) for block, n in ((0, 100), (2, 288), (4, 45), (8, 3), (11, 40), (11, 5))] == [
        100,
        180,
        30,
        2,
        1,
        1,
    ]


def test_a_file_says_the_same(tmp_path: Path):
    path = tmp_path / "folder" / "one.yaml"
    save(SCHEDULE, path, {"budget": 0.5, "method": {"class": "ToMe"}})
    assert load(path) == SCHEDULE
    save(SCHEDULE, path, {})  # its own file is replaced
    model = vit_mini().eval()
    images = torch.randn(2, 3, 96, 96)
    ours = ttf.apply(model, schedule=path)(images)
    assert torch.equal(ours, ttf.apply(model, schedule=SCHEDULE)(images))
    assert torch.equal(ours, ttf.apply(model, schedule=str(path))(images))


def test_other_files_are_not_replaced(tmp_path: Path):
    for name, message in (("notes.yaml", "not a schedule"), ("notes.txt", "ends in .yaml")):
        (tmp_path / name).write_text("kind: shopping")
        with pytest.raises(ValueError, match=message):
            save(SCHEDULE, tmp_path / name, {})
        assert (tmp_path / name).read_text() == "kind: shopping"


@pytest.mark.parametrize(
    ("text", "message"),
    [("kind: x", "is no schedule"), ("a: [", "cannot read"), ("kind: ttf searched schedule\ncounts: [3]", "damaged")],
)
def test_damaged_files(text: str, message: str, tmp_path: Path):
    (tmp_path / "one.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        ttf.apply(vit_mini(), schedule=tmp_path / "one.yaml")
    with pytest.raises(ValueError, match="No such file"):
        ttf.apply(vit_mini(), schedule=tmp_path / "two.yaml")


@pytest.mark.parametrize("counts", [(), (10, 11), (10, 0), (200,)])
def test_counts_out_of_range(counts):
    with pytest.raises(ValueError, match="counts are patch tokens"):
        Searched(counts, 144)


def test_who_takes_a_schedule():
    with pytest.raises(ValueError, match="for 12 blocks, the model has 4"):
        ttf.apply(vit_mini_of_depth(4), schedule=SCHEDULE)
    averaging = vit_mini(global_pool="avg", class_token=False).eval()
    with pytest.raises(ValueError, match="searched schedule is for heads that read the class token alone"):
        ttf.apply(averaging, schedule=SCHEDULE)
    with pytest.raises(ValueError, match="budget would not be read"):
        ttf.apply(vit_mini(), schedule=SCHEDULE, budget=0.5)
    ttf.apply(averaging, schedule=Searched((*SCHEDULE.counts[:-1], 40), 144))


def vit_mini_of_depth(depth: int):
    import timm

    return timm.create_model("vit_tiny_patch16_224", depth=depth)


PATCHES = {"deit_ti": 196, "vit_ti_augreg": 196, "vit_mini": 144, "segmenter_mini": 144, "segmenter_ti_camvid": 690}


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.yaml")), ids=lambda file: file.stem)
def test_those_of_the_project_are_as_the_search_wrote_them(file: Path):
    model = file.name.split(".")[0]
    assert "\ndigest: " in file.read_text() and load(file, model).patches == PATCHES[model]


def test_shipped_ones(tmp_path: Path):
    save(SCHEDULE, tmp_path / "deit_ti.tome.0.65.yaml", {})
    assert load(shipped("deit_ti", "tome", 0.65, tmp_path)) == SCHEDULE
    with pytest.raises(ValueError, match=r"budget=0.5 \(budgets: 0.65\)"):
        shipped("deit_ti", "tome", 0.5, tmp_path)
    with pytest.raises(ValueError, match="budgets: none"):
        shipped("resnet", "tome", 0.65)
    with pytest.raises(ValueError, match="leave budget out"):
        chosen("x.yaml", "deit_ti", "tome", 0.5)
