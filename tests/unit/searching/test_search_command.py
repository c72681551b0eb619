"""What ``ttf search`` says at its end."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.composing import composed
from ttf.searching import command


def test_the_command_for_other_images_has_the_same_model_and_options(monkeypatch: pytest.MonkeyPatch) -> None:
    same = ["task=seg", "model=segmenter_mini", "recover=nearest", "+task.data.scenes.seed=3"]
    given = [same[0], "images=8", *same[1:], "budget=0.7", "skip=3", "memory=64", "out=x.yaml"]
    monkeypatch.setattr(command, "overrides", lambda: given)
    said = command._said(
        (5, 4), Path("x.yaml"), composed("search", "task=seg", "model=segmenter_mini", "images=8", "skip=3")
    )
    counts, again = said.splitlines()
    assert counts == "x.yaml: 5, 4 patch tokens"
    assert again == f"on other images: ttf eval {' '.join(same)} schedule=searched schedule.file=x.yaml skip=11"
