"""Pictures of answers: what each method left, and what is said with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra import initialize_config_dir
from omegaconf import DictConfig
from PIL import Image

from tests.composing import CONFIGS, composed

pytest.importorskip("transformers", reason="needs transformers: pip install 'ttf[hf]'")

from ttf.tasks import drawn_answers

WAYS = 'ways=["table5/ours_default ratio=0.5","table5/tome_naive schedule.r=9","table5/ours_recovered ratio=0.5"]'


def _picture(cfg: DictConfig, path: Path) -> list[Path]:
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        return drawn_answers.picture(cfg, path, cfg.pick)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    found: list[Any] = []
    monkeypatch.setattr(drawn_answers, "figure", lambda *told: found.append(told))
    return found


def test_answers_side_by_side(drawn: list[Any], tmp_path: Path):
    cfg = composed("visualize", "task=vqa", "model=llava_mini", "pick=[1]", WAYS)
    assert _picture(cfg, tmp_path / "answers.png") == [tmp_path / "answers.png"]
    ((example,), _) = drawn[0]
    assert list(example.said) == ["uncompressed", "ours (default)", "ToMe, its own order", "ours (default), recovered"]
    whole, ours, tome, recovered = example.said.values()
    assert [one.tokens for one in (whole, ours, tome, recovered)] == [144, 18, 45, 144]
    assert ours.left.sum() == 18 and tome.left.sum() == 45 and whole.left is None and recovered.left is None
    assert all(len(one.answers) == len(one.right) == len(example.questions) for one in example.said.values())
    assert len(set(example.questions)) == len(example.questions)
    by_kind = dict(zip(example.questions, zip(whole.answers, whole.right, strict=True), strict=True))
    assert by_kind["which digit is the largest ?"][0].isdigit() and by_kind["which digit is the largest ?"][1]


def test_one_method_without_experiments(drawn: list[Any], tmp_path: Path):
    cfg = composed(
        "visualize", "task=vqa", "model=llava_mini", "pick=[0]", "method=prumerge", "ratio=0.25", "blocks=[11]"
    )
    _picture(cfg, tmp_path / "answers.png")
    said = drawn[0][0][0].said
    assert [one.tokens for one in said.values()] == [144, 36] and said["prumerge, 0.25"].left.sum() == 36


def test_a_picture_is_written(tmp_path: Path):
    cfg = composed("answers", "pick=[0]", 'ways=["table5/evit ratio=0.5"]')
    _picture(cfg, tmp_path / "answers.png")
    with Image.open(tmp_path / "answers.png") as image:
        assert image.width > image.height > 300
    with pytest.raises(ValueError, match="no picture of its own"):
        _picture(composed("visualize", "task=vqa", "model=llava_mini", "method=none", "pick=[0]"), tmp_path / "x.png")
