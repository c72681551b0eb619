"""LLaVA with a compressed tower in lmms-eval (extra "lmms"): ``lmms-eval --model ttf_llava_hf --model_args ...``.

lmms-eval finds ``manifest`` by the entry point of this package; nothing here is imported otherwise.
"""

from __future__ import annotations

from typing import Any

NAME = "ttf_llava_hf"


def manifest() -> Any:
    """What lmms-eval registers: the two forms of its LLaVA, for prompts as messages and, if asked for, as text."""
    from lmms_eval.models.registry_v2 import ModelManifest

    simple, chat = (f"ttf.lmms.models.{form}" for form in ("CompressedLlava", "CompressedLlavaChat"))
    return ModelManifest(NAME, simple_class_path=simple, chat_class_path=chat)
