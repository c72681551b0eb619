"""The adapter for lmms-eval: its arguments, prompts on fewer tokens, and the evaluator itself where it is installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import ttf
from ttf.data.scene_questions import SceneQuestions
from ttf.errors import MissingError
from ttf.lmms import NAME
from ttf.lmms.arguments import compression, split
from ttf.schedule import RemovePerBlock

pytest.importorskip("transformers")
CHAT = """<s>USER: {% set said = messages[0]['content'] %}{% if said is string %}{{ said }}{% else %}<image>
{{ said | selectattr('type', 'equalto', 'text') | map(attribute='text') | join }}{% endif %} ASSISTANT:"""


def test_arguments_of_the_compression_and_of_the_model() -> None:
    ours, theirs = split(
        {"pretrained": "here", "method": "evit", "ratio": 0.5, "method.fuse": False, "dtype": "float16"}
    )
    assert theirs == {"pretrained": "here", "dtype": "float16"}
    assert compression(ours).options == {"method": "evit", "ratio": 0.5, "fuse": False}
    assert compression({"method": "tome", "r": 8, "order": "official"}).options == {
        "method": "tome",
        "schedule": RemovePerBlock(8),
    }
    assert compression({"blocks": "[3,6]"}).options == {"blocks": (3, 6)}
    assert compression({"blocks": 11}).options == {"blocks": (11,)}
    assert compression({"method": "none"}).options is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "none", "ratio": 0.5}, "reads no other argument: leave out ratio"),
        ({"r": 8, "ratio": 0.5}, "leave out ratio"),
        ({"blocks": "3;6"}, r"blocks=\[3,6\]"),
        ({"blocks": "[true]"}, r"blocks=\[3,6\]"),
        ({"order": "any"}, "order must be raster or official"),
    ],
)
def test_arguments_that_cannot_be(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compression(given)


@pytest.fixture(scope="module")
def llava() -> Any:
    from ttf.models.llava_mini import llava_mini

    torch.manual_seed(0)
    return llava_mini(width=32, depth=1)


def _prompt(llava: Any, question: str, images: int = 1) -> torch.Tensor:
    before, behind = llava.pieces(question)
    image = torch.full((144,), llava.model.config.image_token_index)
    return torch.cat((before, *[image] * images, behind)).unsqueeze(0)


def test_prompts_of_all_tokens_are_answered_on_fewer(llava: Any) -> None:
    """The answers are those of this project's own task, and the prompt comes back in front of them."""
    from ttf.lmms.generation import on_fewer_tokens

    question, image = "is there a 5 ?", torch.randn(1, 3, 96, 96)
    ids = _prompt(llava, question)
    how = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 4, "do_sample": False, "pad_token_id": 2}
    with ttf.applied(llava.model, ratio=0.5):
        out = on_fewer_tokens(llava.model, "raster")(input_ids=ids, pixel_values=image, **how)
        own = llava.spliced(question, llava.features(image)[0]).unsqueeze(0)
        mask = torch.ones(own.shape[:2], dtype=torch.long)
        said = llava.model.generate(inputs_embeds=own, **{**how, "attention_mask": mask})
    assert len(own[0]) < ids.shape[1] and torch.equal(out, torch.cat((ids, said), 1))


def test_each_image_stands_where_its_placeholders_were() -> None:
    from ttf.lmms.generation import spliced

    words, is_image = torch.arange(7.0).view(7, 1), torch.tensor([0, 1, 1, 1, 1, 0, 0]).bool()
    one, two = torch.tensor([[10.0]]), torch.tensor([[20.0]])
    assert spliced(words, is_image, [one, two]).flatten().tolist() == [0, 10, 20, 5, 6]
    with pytest.raises(ValueError, match="4 placeholders and 3 images"):
        spliced(words, is_image, [one] * 3)


def test_without_lmms_eval_one_line_says_what_to_install() -> None:
    if importlib.util.find_spec("lmms_eval") is not None:
        pytest.skip("lmms-eval is installed")
    with pytest.raises(MissingError, match=r"pip install 'ttf\[lmms\]'"):
        importlib.import_module("ttf.lmms.models")


def _processor() -> Any:
    """Of the embedded model, in transformers' classes."""
    from transformers import CLIPImageProcessor, LlavaProcessor

    from ttf.models.llava_mini import tokenizer

    words = tokenizer()
    words.add_special_tokens({"additional_special_tokens": ["<image>"]})
    words.chat_template = CHAT
    colours = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    size = {"size": {"height": 96, "width": 96}, "do_center_crop": False}
    return LlavaProcessor(
        CLIPImageProcessor(**colours, **size),
        words,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT,
    )


def _task(data: SceneQuestions, simple: bool) -> Any:
    """A task of lmms-eval from questions of this project, with prompts as text or as messages."""
    from lmms_eval.api import task

    base: Any = task.ConfigurableTask if simple else task.ConfigurableMessagesTask

    class Scenes(base):
        def download(self, *_: Any, **__: Any) -> None:
            from datasets import Dataset, DatasetDict

            rows = [
                {"scene": scene, "question": question.text, "answer": question.answers[0]}
                for scene in range(len(data))
                for question in data.questions(scene)
            ]
            self.dataset = self.dataset_no_image = DatasetDict({"test": Dataset.from_list(rows)})

    config = {
        "task": "scenes",
        "dataset_path": "scenes",
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": lambda doc: doc["question"],
        "doc_to_visual": lambda doc: [data.image(doc["scene"])],
        "doc_to_target": "answer",
        "generation_kwargs": {"max_new_tokens": 8},
        "process_results": lambda doc, results: {"exact": float(results[0].strip() == doc["answer"])},
        "metric_list": [{"metric": "exact", "aggregation": "mean", "higher_is_better": True}],
    }
    return Scenes(config=config)


@pytest.mark.parametrize(
    ("model_args", "simple"),
    [("method=none", True), ("ratio=0.5", False), ("method=tome,r=8", True), ("ratio=0.5,recover=true", False)],
)
def test_the_evaluator_of_lmms_eval(
    model_args: str, simple: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The same answers to the same questions as this project's task, on the embedded model."""
    reason = "lmms-eval is not installed: pip install 'ttf[lmms]'"
    evaluator = pytest.importorskip("lmms_eval.evaluator", reason=reason)
    from lmms_eval.models.simple import llava_hf

    from ttf.config_store import model as config_of
    from ttf.models.weights import load_model
    from ttf.tasks.vqa import QuestionAnswering

    data = SceneQuestions("test", 4, kinds=["exist", "count", "largest"])
    own, other = (load_model(config_of("llava_mini")) for _ in range(2))
    folder = tmp_path / "llava"
    own.model.config.save_pretrained(folder)
    _processor().save_pretrained(folder)
    monkeypatch.setitem(llava_hf.model_map, "llava", SimpleNamespace(from_pretrained=lambda *_, **__: other.model))
    found = evaluator.simple_evaluate(
        model=NAME,
        model_args=f"pretrained={folder},{model_args}",
        tasks=[_task(data, simple)],
        device="cpu",
        batch_size=1,
        force_simple=simple,
        bootstrap_iters=0,
    )
    said = [sample["filtered_resps"][0].strip() for sample in found["samples"]["scenes"]]
    options = compression(split(_parsed(model_args))[0]).options
    if options is not None:
        ttf.apply(own, **options)
    task = QuestionAnswering(data=data, model=own)
    answers, _ = task._answers(own, None, "")
    assert said == [text for scene in range(4) for text in answers[scene].texts]


def _parsed(model_args: str) -> dict[str, Any]:
    from lmms_eval.utils import simple_parse_args_string

    parsed: dict[str, Any] = simple_parse_args_string(model_args)
    return parsed
