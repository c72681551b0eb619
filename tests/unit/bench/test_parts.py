"""Parts of vision-language models: what they compute, and what that costs."""

from __future__ import annotations

import pytest
import torch

import ttf
from ttf.bench import parts

pytest.importorskip("transformers")


def test_an_answer_of_fixed_length_is_counted_step_by_step() -> None:
    from ttf.models.llava_mini import llava_mini

    model, image = llava_mini(width=32, depth=1).eval(), torch.randn(1, 3, 96, 96)
    with torch.inference_mode():
        said = model.continued(image)
        assert said.shape == (1, 8) and torch.equal(said, model.step_by_step(image))
        assert torch.equal(parts.part(model, "answer")(image), said)
        assert [one.shape for one in parts.part(model, "tower")(image)] == [(144, 96)]
    costs = [parts.cost(model, image, name)["gmacs"] for name in parts.PARTS]
    assert costs == sorted(costs) and costs[1] == ttf.measure.gmacs(model, image.shape)
    ttf.apply(model, "prumerge", ratio=0.5, blocks=(11,))
    assert (
        parts.cost(model, image, "tower")["gmacs"] >= costs[0]
        and parts.cost(model, image, "answer")["gmacs"] < costs[2]
    )
