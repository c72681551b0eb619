"""lmms-eval's LLaVA of transformers, with a compressed tower."""

from __future__ import annotations

from typing import Any

import torch

import ttf
from ttf.errors import MissingError
from ttf.lmms.arguments import compression, split
from ttf.lmms.generation import features, on_fewer_tokens
from ttf.models.llava import check_kind

try:
    from lmms_eval.models.chat.llava_hf import LlavaHf as Chat
    from lmms_eval.models.simple.llava_hf import LlavaHf as Simple
except ImportError as error:
    raise MissingError(f"ttf.lmms needs lmms-eval and decord: pip install 'ttf[lmms]' ({error})") from error


class _Compressed:
    """Takes the arguments of the compression, lmms-eval's class the others.

    Raises:
        ValueError: see ``ttf.lmms.arguments`` and ``ttf.apply``; a model of another kind than LLaVA-1.5.
    """

    model: Any

    def __init__(self, **given: Any) -> None:
        ours, theirs = split(given)
        how = compression(ours)
        super().__init__(**theirs)
        check_kind(str(theirs.get("pretrained")), self.model.config)
        self.model.eval()
        self.compressed = how.options is not None
        if how.options is not None:
            ttf.apply(self.model, **how.options)
        self._check(how.order)
        self.model.generate = on_fewer_tokens(self.model, how.order)

    def _check(self, order: str) -> None:
        """One image, so that mistakes show: lmms-eval takes whatever an answer raises for an empty one."""
        side = self.model.config.vision_config.image_size
        with torch.no_grad():
            features(self.model, torch.zeros(1, 3, side, side), order)

    def loglikelihood(self, requests: Any) -> Any:
        """Of continuations: for uncompressed models, since the prompts are those of all tokens."""
        if self.compressed:
            raise ValueError(
                "a compressed LLaVA answers tasks of generate_until alone, and this one asks for likelihoods"
            )
        own: Any = super()
        return own.loglikelihood(requests)


class CompressedLlava(_Compressed, Simple):
    """For prompts that are text."""


class CompressedLlavaChat(_Compressed, Chat):
    """For prompts that are messages, in the model's own chat template."""

    is_simple = False
