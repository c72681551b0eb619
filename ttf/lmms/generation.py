"""``generate`` of a LLaVA whose prompts hold as many placeholders as its tower has patches, answered on fewer tokens.

Shapes: I images, N placeholders an image, M tokens that the language model reads of it, T words, placeholders included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ttf.models import tower_tokens


def spliced(words: Tensor, is_image: Tensor, features: Sequence[Tensor]) -> Tensor:
    """Embeddings of a prompt with the tokens of its images in place of their placeholders, (T - I N + sum of M, width).

    Args:
        words: embeddings, (T, width).
        is_image: where placeholders are, (T,), N after another for each image.
        features: of each image, (M, width).

    Raises:
        ValueError: the placeholders cannot be shared out to the images.
    """
    places = is_image.nonzero().flatten().tolist()
    if not features or not places or len(places) % len(features):
        raise ValueError(f"a prompt with {len(places)} placeholders and {len(features)} images")
    count, parts, after = len(places) // len(features), list[Tensor](), 0
    for tokens, first in zip(features, places[::count], strict=True):
        parts += [words[after:first], tokens.to(words)]
        after = first + count
    return torch.cat([*parts, words[after:]])


def features(model: Any, pixels: Tensor, order: str) -> list[Tensor]:
    """What the language model reads of each image, (M, width) each."""
    project = model.get_submodule("model.multi_modal_projector")
    return [project(tokens) for tokens in tower_tokens.selected(model, pixels, order)]


def on_fewer_tokens(model: Any, order: str) -> Callable[..., Tensor]:
    """``model.generate`` for one prompt, on what a compressed tower leaves; it returns prompt and answer, (1, T + new).

    Args:
        model: a ``LlavaForConditionalGeneration``, compressed or not.
        order: of the tokens, see ``tower_tokens``.
    """
    plain = model.generate

    @torch.no_grad()
    def generate(input_ids: Tensor, pixel_values: Tensor | None = None, **how: Any) -> Tensor:
        if pixel_values is None:
            return plain(input_ids=input_ids, **how)
        assert len(input_ids) == 1
        of_words = {name for name, value in how.items() if isinstance(value, Tensor) and value.shape == input_ids.shape}
        is_image = input_ids[0] == model.config.image_token_index
        words = model.get_input_embeddings()(input_ids[0].masked_fill(is_image, 0))  # some vocabularies end before it
        prompt = spliced(words, is_image, features(model, pixel_values, order)).unsqueeze(0)
        mask = torch.ones(prompt.shape[:2], dtype=torch.long, device=prompt.device)
        rest = {name: value for name, value in how.items() if name not in of_words}
        said = plain(inputs_embeds=prompt, attention_mask=mask, **rest)
        return torch.cat((input_ids, said.to(input_ids)), dim=1)

    return generate
