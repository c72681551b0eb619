"""Questions about scenes, and the packing of several behind one image."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from ttf.data.scene_questions import KINDS, Digits, SceneQuestions, ask
from ttf.data.scenes import SceneClassification, compose_apart

pytest.importorskip("transformers", reason="needs transformers: pip install 'ttf[hf]'")

from ttf.data.packed_questions import IGNORED, PackedQuestions
from ttf.models.llava_mini import check_same, llava_mini
from ttf.training.answering import Answering, ModelReader, Packed

STAGES = [{"until": 0.5, "kinds": {"read": 1}}, {"until": 1, "kinds": dict.fromkeys(KINDS, 1)}]


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    return llava_mini(width=32, depth=2)


def test_digits_lie_apart_and_one_is_the_largest():
    for index in range(30):
        scene = compose_apart(3, index)
        heights = Digits.of(scene).heights
        assert 2 <= len(heights) <= 4 and heights.argmax() == len(heights) - 1 and scene.label == scene.box_labels[-1]
    assert np.array_equal(compose_apart(3, 1).image, compose_apart(3, 1).image)


def test_a_layout_that_does_not_exist():
    with pytest.raises(ValueError, match="layout must be one of near, apart"):
        SceneClassification("test", 1, layout="far")


def test_questions_are_answered_by_the_boxes():
    data, said = SceneQuestions("test", 60), Counter[str]()
    for index in range(len(data)):
        scene = compose_apart(0, index, "test")
        things = Digits.of(scene)
        by_part = {one.part: one for one in data.questions(index)}
        assert by_part["count"].answers[0] == str(len(things.digits))
        assert by_part["largest"].answers[0] == str(scene.label)
        choice = by_part["choice"]
        options = dict(zip("ABC", (part.split()[0] for part in choice.text.split(". ")[1:]), strict=True))
        assert options[choice.answers[0]] == str(scene.label)
        if "read" in by_part:
            order = np.argsort(things.centres[:, 0])
            assert by_part["read"].answers[0].split() == [str(things.digits[i]) for i in order]
        for split in ("random", "popular", "adversarial"):
            digit = int(by_part[split].text.split()[3])
            assert (digit in things.digits) == (by_part[split].answers[0] == "yes")
            said[by_part[split].answers[0]] += 1
    assert 0.4 < said["yes"] / said.total() < 0.6


def test_only_some_kinds_of_questions():
    whole, some = SceneQuestions("test", 4), SceneQuestions("test", 4, kinds=["largest", "exist"])
    kept = [one for one in whole.questions(2) if one.benchmark == "pope" or one.part == "largest"]
    assert [(q.text, q.answers) for q in some.questions(2)] == [(q.text, q.answers) for q in kept]
    assert some.digest() != whole.digest() == SceneQuestions("test", 4, kinds=KINDS).digest()
    with pytest.raises(ValueError, match="no kind of question guess: choose among exist, count"):
        SceneQuestions("test", 4, kinds=["guess"])


def test_unclear_questions_are_not_asked():
    things = Digits([3, 5], np.array([[40.0, 20.0], [42.0, 60.0]]), np.array([30.0, 45.0]))
    rng = np.random.default_rng(0)
    assert ask(things, "read", rng) is None  # two pixels apart
    assert ask(things, "where", rng) == ("where is the largest digit ?", "bottom left")


def test_the_tower_is_vit_mini_bit_for_bit():
    assert check_same(torch.randn(2, 3, 96, 96)) == 0.0


def test_a_question_in_a_pack_is_one_by_itself(model: Any):
    """Logits of the answers are those of separate prompts."""
    data = PackedQuestions("test", 1, transform=ModelReader(model))
    tokens, _, ids, labels, _, positions, segments = (part.unsqueeze(0) for part in data[0])
    packed = Packed(model)
    with torch.no_grad():
        _, text = packed.hidden(tokens, ids, positions, segments)
        features = model.model.get_submodule("model.multi_modal_projector")(tokens[0])
        for number, question in enumerate(data.test.questions(0), 1):
            own = segments[0] == number
            before, behind = model.pieces(question.text)
            assert ids[0][own].tolist()[: len(behind)] == behind.tolist()
            words = model.tokenizer(question.answers[0], add_special_tokens=False).input_ids
            assert labels[0][own].tolist()[-len(words) - 1 :] == [*words, model.tokenizer.eos_token_id]
            embedded = [model._embedded(part) for part in (before, torch.tensor([*behind.tolist(), *words]))]
            whole = torch.cat((embedded[0], features, embedded[1])).unsqueeze(0)
            alone = packed.language(inputs_embeds=whole)[0][0, -len(words) - 1 :]
            assert torch.allclose(text[0][own][-len(words) - 1 :], alone, atol=1e-4)


def test_the_curriculum_chooses_the_kinds(model: Any):
    data = PackedQuestions("train", 8, curriculum=STAGES, transform=ModelReader(model))
    early, late = data[0], data[7]
    assert set(early[4].tolist()) <= {-1, KINDS.index("read")} and len(set(late[4].tolist())) > 2
    assert all(part.shape == other.shape for part, other in zip(early, late, strict=True))


def test_questions_begin_at_varying_places_in_training_alone(model: Any):
    """And the image's tokens are squeezed into the places before them."""
    reader, start = ModelReader(model), len(model.pieces("")[0])
    training = PackedQuestions("train", 8, curriculum=STAGES[1:], transform=reader)
    begins = [int(training[item][5][start]) - start for item in range(8)]
    assert len(set(begins)) > 4 and all(8 <= begin <= 144 for begin in begins)
    assert int(PackedQuestions("test", 1, transform=reader)[0][5][start]) == start + 144


def test_an_image_is_squeezed_into_the_places_before_the_questions(model: Any, monkeypatch: pytest.MonkeyPatch):
    packed, seen = Packed(model), list[torch.Tensor]()
    forward = packed.language.forward
    monkeypatch.setattr(
        packed.language, "forward", lambda **given: (seen.append(given["position_ids"]), forward(**given))[1]
    )
    item = PackedQuestions("test", 1, transform=ModelReader(model))[0]
    tokens, _, ids, _, _, positions, segments = (part.unsqueeze(0) for part in item)
    start = int((segments == 0).sum())
    shifted = torch.where(segments > 0, positions - 108, positions)  # 36 places in place of 144
    packed.hidden(tokens, ids, shifted, segments)
    image = seen[0][0, start : start + 144]
    assert image.tolist() == [start + patch // 4 for patch in range(144)]


@pytest.mark.parametrize("stages", [[{"until": 1, "kinds": {"guess": 1}}], [{"until": 0.5, "kinds": {"read": 1}}]])
def test_a_wrong_curriculum(stages: Any):
    with pytest.raises(ValueError, match="curriculum must reach until: 1 with kinds among exist"):
        PackedQuestions("train", 8, curriculum=stages)


def test_the_tower_is_frozen_and_the_rest_learns(model: Any):
    objective = Answering(model)
    batch = [part.unsqueeze(0) for part in PackedQuestions("test", 1, transform=ModelReader(model))[0]]
    assert (batch[3] != IGNORED).any()
    objective(*batch).backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained and not any("vision_tower" in name for name in trained)
    assert any("multi_modal_projector" in name for name in trained)
