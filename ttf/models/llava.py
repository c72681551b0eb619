"""A vision-language model of transformers with all that it needs to answer: words, preparation of images, prompt.

The tower may be compressed: the language model then reads M tokens in place of N, or N recovered ones.
Shapes: B batch, N tokens of the tower, M tokens that the language model reads, C channels, Q questions, T words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.functional import pil_to_tensor

from ttf.errors import MissingError
from ttf.models import tower_tokens
from ttf.models.placement import Placement, free_tower, is_hooked

IMAGE = "<image>"
COUNTED_WORDS = 64  # of a prompt in ``forward``, whose cost stands for that of a question


@dataclass(frozen=True)
class Preparation:
    """LLaVA's way with images: padded to a square with the mean colour, resized, normalised.

    Attributes:
        side: of the images that the tower takes.
        mean, std: of the colours, in [0, 1].
    """

    side: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def square(self, image: Image.Image) -> Image.Image:
        """The image in the middle of a square of the mean colour."""
        image = image.convert("RGB")
        width, height = image.size
        if width == height:
            return image
        side, colour = max(width, height), tuple(int(255 * value) for value in self.mean)
        canvas = Image.new("RGB", (side, side), colour)
        canvas.paste(image, ((side - width) // 2, (side - height) // 2))
        return canvas

    def __call__(self, image: Image.Image) -> Tensor:
        """(3, S, S) float32."""
        image = self.square(image)
        if image.size != (self.side, self.side):
            image = image.resize((self.side, self.side), Image.Resampling.BICUBIC)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        return (pil_to_tensor(image).float() / 255 - mean) / std


NESTED = "model.model.vision_tower.vision_model."  # in transformers below 5.5, for all parts of a tower
PLAIN = NESTED.removesuffix("vision_model.")


def _plain_names(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    """The tower's parts under the same names with every version of transformers, so that files fit all of them."""
    for name in [name for name in state if name.startswith(prefix + NESTED)]:
        state[prefix + PLAIN + name.removeprefix(prefix + NESTED)] = state.pop(name)


def _own_names(module: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    """The same names as this version of transformers has them."""
    own: Any = module
    if not hasattr(own.model.get_submodule(tower_tokens.TOWER), "vision_model"):
        return
    for name in [name for name in state if name.startswith(prefix + PLAIN)]:
        state[prefix + NESTED + name.removeprefix(prefix + PLAIN)] = state.pop(name)


class VisionLanguageModel(nn.Module):
    """Images and questions to answers. As a module: images (B, 3, S, S) to logits of a prompt of so many words.

    Args:
        model: a ``LlavaForConditionalGeneration``.
        tokenizer: of transformers.
        preparation: of the images.
        prompt: with "<image>" and "{question}".
        answer_tokens: the longest answer.
        order: of the tokens that the language model reads: "raster", by the place that each one grew from; or
            "official", as the method leaves them.

    Raises:
        ValueError: a prompt without a place for the image or the question, or another word for the order.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        preparation: Preparation,
        prompt: str,
        answer_tokens: int,
        order: str = "raster",
    ) -> None:
        super().__init__()
        if prompt.count(IMAGE) != 1 or prompt.count("{question}") != 1:
            raise ValueError(f'the prompt must have "{IMAGE}" and "{{question}}" once each, got {prompt!r}')
        tower_tokens.check_order(order)
        self.model, self.tokenizer, self.preparation = model, tokenizer, preparation
        self.prompt, self.answer_tokens, self.order = prompt, answer_tokens, order
        self.register_state_dict_post_hook(_plain_names)
        self.register_load_state_dict_pre_hook(_own_names)

    @property
    def input_size(self) -> tuple[int, int, int]:
        return 3, self.preparation.side, self.preparation.side

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """The preprocessing in the words of timm, of images that are square already."""
        how = {"mean": self.preparation.mean, "std": self.preparation.std, "crop_pct": 1.0, "crop_mode": "squash"}
        return {"input_size": self.input_size, "interpolation": "bicubic", **how}

    # tokens of the image

    def selected(self, images: Tensor) -> list[Tensor]:
        """What LLaVA takes from its tower for each image, (M, C) each: the class token is gone."""
        return tower_tokens.selected(self.model, images, self.order)

    def features(self, images: Tensor) -> list[Tensor]:
        """The same as the language model reads them, (M, width) each."""
        return [self.model.get_submodule("model.multi_modal_projector")(tokens) for tokens in self.selected(images)]

    # prompts

    def _ids(self, text: str, first: bool) -> Tensor:
        """Ids (T,) of a piece of a prompt; the first one begins with the token of the beginning."""
        ids = self.tokenizer(text, add_special_tokens=False).input_ids
        return torch.tensor([self.tokenizer.bos_token_id, *ids] if first else ids, dtype=torch.long)

    def pieces(self, question: str) -> tuple[Tensor, Tensor]:
        """Ids before and behind the image; its pieces are tokenised by themselves, as LLaVA does."""
        before, behind = self.prompt.split(IMAGE)
        return self._ids(before, True), self._ids(behind.format(question=question), False)

    def text_only(self, question: str) -> Tensor:
        """Ids of a prompt without an image."""
        text = self.prompt.replace(f"{IMAGE}\n", "").replace(IMAGE, "")
        return self._ids(text.format(question=question), True)

    def _embedded(self, ids: Tensor) -> Tensor:
        embedding = self.model.get_input_embeddings()
        return embedding(ids if is_hooked(embedding) else ids.to(embedding.weight.device))

    def spliced(self, question: str, features: Tensor | None) -> Tensor:
        """Embeddings of a prompt, (T + M, width); without an image the words alone."""
        if features is None:
            return self._embedded(self.text_only(question))
        before, behind = (self._embedded(ids) for ids in self.pieces(question))
        return torch.cat((before, features.to(before), behind))

    @staticmethod
    def padded(prompts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Prompts of several lengths as a batch, padded at the left, and its mask: (Q, T, width) and (Q, T)."""
        longest = max(map(len, prompts))
        batch = prompts[0].new_zeros(len(prompts), longest, prompts[0].shape[1])
        mask = torch.zeros(len(prompts), longest, dtype=torch.long, device=batch.device)
        for row, prompt in enumerate(prompts):
            batch[row, longest - len(prompt) :], mask[row, longest - len(prompt) :] = prompt, 1
        return batch, mask

    @torch.no_grad()
    def answer(self, questions: Sequence[str], features: Sequence[Tensor | None]) -> list[str]:
        """Greedy answers, without white space around them.

        Args:
            questions: Q of them.
            features: those of each question's image, see ``features``; None: a question without an image.
        """
        embeds, mask = self.padded([self.spliced(q, f) for q, f in zip(questions, features, strict=True)])
        pad = self.tokenizer.pad_token_id
        out = self.model.generate(
            inputs_embeds=embeds,
            attention_mask=mask,
            max_new_tokens=self.answer_tokens,
            do_sample=False,
            num_beams=1,
            eos_token_id=self.tokenizer.eos_token_id,
            pad_token_id=self.tokenizer.eos_token_id if pad is None else pad,
        )
        return [text.strip() for text in self.tokenizer.batch_decode(out, skip_special_tokens=True)]

    def _prompts(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Prompts of ``COUNTED_WORDS`` words with an image each, (B, T + M, width), and a mask if they are padded."""
        features = self.features(images)
        words = self._embedded(torch.zeros(COUNTED_WORDS, dtype=torch.long))
        prompts = [torch.cat((words, tokens.to(words))) for tokens in features]
        embeds, mask = self.padded(prompts)
        return embeds, mask if len({len(prompt) for prompt in prompts}) > 1 else None

    def forward(self, images: Tensor) -> Tensor:
        """Logits of the next word after a prompt of ``COUNTED_WORDS`` words with the image, (B, words)."""
        embeds, mask = self._prompts(images)
        return self.model(inputs_embeds=embeds, attention_mask=mask, logits_to_keep=1).logits[:, -1]

    def continued(self, images: Tensor) -> Tensor:
        """Ids of ``answer_tokens`` words after the same prompt, (B, words): greedy, and no word ends them."""
        embeds, mask = self._prompts(images)
        return self.model.generate(
            inputs_embeds=embeds,
            attention_mask=torch.ones(embeds.shape[:2], device=embeds.device).long() if mask is None else mask,
            min_new_tokens=self.answer_tokens,
            max_new_tokens=self.answer_tokens,
            do_sample=False,
            num_beams=1,
            pad_token_id=0,
        )

    def step_by_step(self, images: Tensor) -> Tensor:
        """The same as ``continued`` without looking at a value, to count it from shapes; prompts of one length."""
        embeds, mask = self._prompts(images)
        assert mask is None
        out = self.model(inputs_embeds=embeds, use_cache=True, logits_to_keep=1)
        words = [out.logits[:, -1].argmax(-1, keepdim=True)]
        cache = "cache" if "cache" in signature(self.model.forward).parameters else "past_key_values"  # as of 5.x
        while len(words) < self.answer_tokens:
            out = self.model(
                input_ids=words[-1], use_cache=True, **{cache: out[cache if cache in out else "past_key_values"]}
            )
            words.append(out.logits[:, -1].argmax(-1, keepdim=True))
        return torch.cat(words, dim=1)


# LLaVA-1.5 and its relatives from the hub

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
PROMPT = f"{SYSTEM} USER: {IMAGE}\n{{question}} ASSISTANT:"
NEED_GRIDS = "its language model reads tiles as whole grids of tokens"
REFUSED = {
    "llava_next": NEED_GRIDS,
    "llava_next_video": NEED_GRIDS,
    "llava_onevision": NEED_GRIDS,
    "vipllava": "its language model reads the features of five layers, which have other tokens each",
}


def check_kind(name: str, config: Any) -> None:
    """Raise ``ValueError`` for a model of another kind than LLaVA, with the reason where it is known."""
    kind = config.model_type
    if kind in REFUSED:
        raise ValueError(f"{name} is a {kind}, which this task does not take: {REFUSED[kind]}. Take a LLaVA-1.5")
    if kind != "llava":
        raise ValueError(f"{name} is a {kind} and no LLaVA of transformers (model_type llava)")
    tower_tokens.feature_block(config)


def _preparation(processor: Any, side: int) -> Preparation:
    """From an image processor: its colours; the padding is LLaVA's, which those on the hub leave out."""
    return Preparation(side, tuple(processor.image_mean), tuple(processor.image_std))


CLIP_COLOURS = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
SHAPES = {  # of the Llama: width, width of the MLP, layers, heads, heads of keys and values
    "llava-hf/llava-1.5-7b-hf": (4096, 11008, 32, 32, 32),
    "tinyllama-1.1b": (2048, 5632, 22, 32, 4),  # behind the same tower; to time on a machine without a GPU
}


def in_shapes(name: str, answer_tokens: int = 128, prompt: str = PROMPT) -> VisionLanguageModel:
    """A LLaVA-1.5 that answers nothing, from what is known of its sizes: to count its arithmetic without any file.

    Raises:
        MissingError: its sizes are not known here.
    """
    import transformers as library

    if name not in SHAPES:
        raise MissingError(f"{name} is not on this machine, and its sizes are known of {', '.join(SHAPES)} alone")
    width, inner, layers, heads, shared = SHAPES[name]
    sizes: dict[str, Any] = {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers}
    text = library.LlamaConfig(vocab_size=32064, num_attention_heads=heads, num_key_value_heads=shared, **sizes)
    tower: dict[str, Any] = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24}
    vision = library.CLIPVisionConfig(num_attention_heads=16, image_size=336, patch_size=14, **tower)
    config = library.LlavaConfig(vision_config=vision, text_config=text)
    model = library.LlavaForConditionalGeneration._from_config(config)
    return VisionLanguageModel(model.eval(), None, Preparation(336, *CLIP_COLOURS), prompt, answer_tokens)


def llava(
    name: str,
    answer_tokens: int = 128,
    prompt: str = PROMPT,
    pretrained: bool = False,
    placement: Placement | None = None,
) -> VisionLanguageModel:
    """A LLaVA by its name among the files of this machine (the hub's cache), or from a folder of ``save_pretrained``.

    Args:
        name: such as "llava-hf/llava-1.5-7b-hf", or a folder.
        answer_tokens: the longest answer; 1024 for ScienceQA in the official code, 128 elsewhere.
        prompt: see ``VisionLanguageModel``.
        pretrained: load its weights; else they are random, and the sizes of LLaVA-1.5 7B need no file.
        placement: of the weights, over several devices; None: in memory, in the dtype of the files.

    Raises:
        MissingError: transformers is not installed, or there is no such model here.
        ValueError: a model of another kind.
    """
    try:
        import transformers as library
    except ImportError as error:
        raise MissingError("vision-language models need transformers: pip install 'ttf[hf]'") from error
    local: dict[str, Any] = {"local_files_only": True}
    if not pretrained and name in SHAPES:
        return in_shapes(name, answer_tokens, prompt)
    try:
        config = library.AutoConfig.from_pretrained(name, **local)
        check_kind(name, config)
        words = library.AutoTokenizer.from_pretrained(name, **local)
        processor = library.AutoImageProcessor.from_pretrained(name, **local)
        kind = library.LlavaForConditionalGeneration
        how = {"dtype": "auto"} if placement is None else placement.options()
        model = kind.from_pretrained(name, **how, **local) if pretrained else kind._from_config(config)
    except OSError as error:
        raise MissingError(f"{name} is not on this machine ({str(error).splitlines()[0]})") from error
    if placement is not None:
        free_tower(model)
    return VisionLanguageModel(
        model.eval(), words, _preparation(processor, config.vision_config.image_size), prompt, answer_tokens
    )
