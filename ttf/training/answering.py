"""Training of the language model behind a frozen tower, on questions that share an image (``Packs``).

Shapes: B batch, n patches, C channels of the tower, T ids of an item.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from ttf.data.packed_questions import IGNORED
from ttf.models.llava import VisionLanguageModel
from ttf.models.llava_mini import PATCH_WORDS
from ttf.training.data import evaluation_batches
from ttf.training.evaluation import Score


class ModelReader:
    """What a model sees and how it takes words: the ``Reader`` of its data sets.

    Args:
        model: whose tower reads.
    """

    def __init__(self, model: VisionLanguageModel) -> None:
        self._model = model
        self.pieces, self.answer_ids = (
            cache(model.pieces),
            cache(self._answer_ids),
        )  # the same ones come again and again

    @torch.no_grad()
    def tokens(self, images: Sequence[Image.Image]) -> list[Tensor]:
        """See ``Reader.tokens``."""
        model = self._model.eval()
        return [seen.cpu() for seen in model.selected(torch.stack([model.preparation(image) for image in images]))]

    def _answer_ids(self, answer: str) -> Tensor:
        """Ids of an answer with the end."""
        words = self._model.tokenizer
        return torch.tensor([*words(answer, add_special_tokens=False).input_ids, words.eos_token_id])


def _mask(segments: Tensor, start: int, patches: int) -> Tensor:
    """Which position (rows) sees which (columns): what comes before it of the image and of its own question."""
    image = segments.new_zeros(len(segments), patches)
    whole = torch.cat((segments[:, :start], image, segments[:, start:]), dim=1)
    same = (whole.unsqueeze(1) == whole.unsqueeze(2)) | (whole == 0).unsqueeze(1)
    return same.tril().unsqueeze(1)


class Packed:
    """The language model on a batch of ``Packs``.

    Args:
        model: its wrapper.
    """

    def __init__(self, model: VisionLanguageModel) -> None:
        parts: Any = model.model
        self.projector = parts.get_submodule("model.multi_modal_projector")
        self.language, self.head = parts.get_submodule("model.language_model"), parts.lm_head

    def hidden(self, tokens: Tensor, ids: Tensor, positions: Tensor, segments: Tensor) -> tuple[Tensor, Tensor]:
        """Of the image (B, n, width) and of the ids (B, T, width), after the last norm."""
        embedded, features = self.language.get_input_embeddings()(ids), self.projector(tokens)
        start, patches = int((segments[0] == 0).sum()), tokens.shape[1]
        whole = torch.cat((embedded[:, :start], features, embedded[:, start:]), dim=1)
        places = positions[:, start : start + 1] - start  # the first question begins behind those of the image
        squeezed = start + torch.arange(patches, device=ids.device) * places // patches
        places = torch.cat((positions[:, :start], squeezed, positions[:, start:]), dim=1)
        seen = torch.zeros_like(_mask(segments, start, patches), dtype=whole.dtype)
        seen = seen.masked_fill(~_mask(segments, start, patches), torch.finfo(whole.dtype).min)
        out = self.language(inputs_embeds=whole, attention_mask=seen, position_ids=places, use_cache=False)[0]
        return out[:, start : start + patches], torch.cat((out[:, :start], out[:, start + patches :]), dim=1)


class Answering(nn.Module):
    """Cross-entropy of the words of answers; the tower is frozen.

    Beside it the image tokens name what lies under their patch, in the language model's own words: in trials without
    it looking a digit up stayed at chance for a thousand steps.

    Args:
        model: not compressed.
        patch_weight: of the loss of the patches.
        label_smoothing: of the answers.
        patch_words: what the labels of patches are called, words of the tokenizer.
    """

    def __init__(
        self,
        model: VisionLanguageModel,
        patch_weight: float = 0.5,
        label_smoothing: float = 0.0,
        patch_words: Sequence[str] = PATCH_WORDS,
    ) -> None:
        super().__init__()
        self.model, self.patch_weight, self.label_smoothing = model, patch_weight, label_smoothing
        self._packed = (Packed(model),)
        model.model.get_submodule("model.vision_tower").requires_grad_(False)
        names = model.tokenizer.convert_tokens_to_ids(list(patch_words))
        self.register_buffer("words", torch.tensor(names), persistent=False)

    def forward(
        self,
        tokens: Tensor,
        patches: Tensor,
        ids: Tensor,
        labels: Tensor,
        kinds: Tensor,
        positions: Tensor,
        segments: Tensor,
    ) -> Tensor:
        """The loss of a batch, items as ``Packs`` gives them."""
        packed = self._packed[0]
        image, text = packed.hidden(tokens, ids, positions, segments)
        answered = labels != IGNORED
        logits = packed.head(text[answered]).float()
        loss = F.cross_entropy(logits, labels[answered], label_smoothing=self.label_smoothing)
        named = F.linear(image, packed.head.weight[self.words]).float()
        return loss + self.patch_weight * F.cross_entropy(named.flatten(0, 1), patches.flatten(), ignore_index=IGNORED)


class Answered(Score):
    """Share of the questions that are answered right, word by word with the end; the mean over the kinds.

    Args:
        kinds: of the questions, see ``Packs``.
    """

    name = "answered"
    batch_size = 25

    def __init__(self, kinds: tuple[str, ...]) -> None:
        self.parts = kinds

    def of_batch(self, logits: Tensor, targets: Tensor) -> Tensor:
        raise NotImplementedError("a batch of questions is more than logits and targets")

    @torch.no_grad()
    def outcomes(self, model: nn.Module, data: Any, engine: Accelerator, workers: int = 0) -> Tensor:
        """See ``Score.outcomes``: right and asked questions of each kind, (n, kinds, 2)."""
        assert isinstance(model, VisionLanguageModel)
        packed, mine, found = Packed(model.eval()), range(engine.process_index, len(data), engine.num_processes), []
        for batch in evaluation_batches(data, mine, self.batch_size, workers):
            tokens, _, ids, labels, kinds, positions, segments = (part.to(engine.device) for part in batch)
            _, text = packed.hidden(tokens, ids, positions, segments)
            wrong = (packed.head(text).argmax(-1) != labels) & (labels != IGNORED)
            found.append(_by_kind(wrong, kinds, segments, len(self.parts)))
        whole = torch.zeros(len(data), len(self.parts), 2, device=engine.device, dtype=torch.float64)
        whole[torch.tensor(mine)] = torch.cat(found).double().to(engine.device)
        return engine.reduce(whole, "sum").long().cpu()

    def by_part(self, outcomes: Tensor) -> dict[str, float]:
        """Percent right of each kind."""
        right, asked = outcomes.sum(0).double().unbind(1)
        return dict(zip(self.parts, (100 * right / asked.clamp_min(1)).tolist(), strict=True))

    def percent(self, outcomes: Tensor) -> float:
        """See ``Score.percent``."""
        values = list(self.by_part(outcomes).values())
        return sum(values) / len(values)


def _by_kind(wrong: Tensor, kinds: Tensor, segments: Tensor, count: int) -> Tensor:
    """Right and asked questions of each kind, (B, count, 2), of wrong words (B, T)."""
    found = torch.zeros(len(wrong), count, 2, dtype=torch.long)
    for row in range(len(wrong)):
        for number in range(1, int(segments[row].max()) + 1):
            own = segments[row] == number
            kind = int(kinds[row][own].max())
            found[row, kind] += torch.tensor([int(not wrong[row][own].any()), 1])
    return found
