"""The embedded LLaVAs in transformers' classes: a ViT of the project as a CLIP tower, a projector, a small Llama.

Shapes: B batch, S side of the images (96), N patches (144), C width of the tower (96).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration
from transformers import PreTrainedTokenizerFast as Tokenizer

from ttf.models.llava import Preparation, VisionLanguageModel
from ttf.models.segmenter import PATCH, Segmenter, resize_positions
from ttf.models.vit_mini import ConvStem, vit_mini

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
WORDS = """USER ASSISTANT : . ? 0 1 2 3 4 5 6 7 8 9 A B C yes no nothing
is there a an how many digits are which digit the largest where top bottom left right read from to in image
sky building pole road pavement tree sign fence car pedestrian bicyclist"""
PATCH_WORDS = ("nothing", *"0123456789")  # what lies under a patch, by the scenes' semantic label
PROMPT = "USER: <image>\n{question} ASSISTANT:"
ANSWER_TOKENS = 8


class Stem(nn.Sequential):
    """The stem of ``vit_mini`` where CLIP has one convolution, whose weight it asks for its dtype."""

    @property
    def weight(self) -> Tensor:
        first: Any = self[0]
        return first.weight


def tokenizer() -> Tokenizer:
    """One token a word, by white space and punctuation."""
    from tokenizers import Tokenizer as Rules
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    words = dict.fromkeys((*SPECIAL, *WORDS.split()))
    rules = Rules(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    rules.pre_tokenizer = Whitespace()
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), SPECIAL, strict=True))
    return Tokenizer(tokenizer_object=rules, padding_side="left", **names)


def _vision() -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=96,
        intermediate_size=288,
        num_hidden_layers=12,
        num_attention_heads=3,
        image_size=96,
        patch_size=8,
        hidden_act="gelu",
        layer_norm_eps=1e-6,
        projection_dim=96,
    )


def _text(words: int, width: int, depth: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=words,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=depth,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )


def assembled(vision: CLIPVisionConfig, stem: nn.Module, width: int, depth: int) -> VisionLanguageModel:
    """A LLaVA with random weights around a tower of transformers without a norm before its blocks.

    Args:
        vision: of the tower; images are normalised from 0 and 1 to -1 and 1.
        stem: the tower's patch embedding.
        width, depth: of the language model.
    """
    words, side, patch = tokenizer(), vision.image_size, vision.patch_size
    assert isinstance(side, int) and isinstance(patch, int)
    config = LlavaConfig(
        vision_config=vision,
        text_config=_text(len(words), width, depth),
        image_token_index=len(words),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        image_seq_length=(side // patch) ** 2,
    )
    model = LlavaForConditionalGeneration._from_config(config, attn_implementation="sdpa")
    tower: Any = encoder_of(model)
    tower.embeddings.patch_embedding = stem
    tower.pre_layrnorm = nn.Identity()
    prepared = Preparation(side, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    return VisionLanguageModel(model.eval(), words, prepared, PROMPT, ANSWER_TOKENS)


def llava_mini(width: int = 64, depth: int = 3) -> VisionLanguageModel:
    """The model with random weights: 1.4 M parameters, of which the tower has 1.2 M.

    Args:
        width: of the language model.
        depth: its layers.
    """
    stem: Any = ConvStem(img_size=96, patch_size=8)
    return assembled(_vision(), Stem(*stem.proj), width, depth)


def llava_ti(width: int = 64, depth: int = 3, side: int = 256) -> VisionLanguageModel:
    """The same behind the encoder of Segmenter-Ti: 5.5 M parameters, 256 tokens of 256x256 images, random weights.

    Args:
        width, depth: of the language model.
        side: of the images, a multiple of 16 pixels.
    """
    vision = CLIPVisionConfig(
        hidden_size=192,
        intermediate_size=768,
        num_hidden_layers=12,
        num_attention_heads=3,
        image_size=side,
        patch_size=PATCH,
        hidden_act="gelu",
        layer_norm_eps=1e-5,
        projection_dim=192,
    )
    return assembled(vision, nn.Conv2d(3, 192, PATCH, stride=PATCH), width, depth)


def encoder_of(model: nn.Module) -> nn.Module:
    """The encoder in a LLaVA: versions of transformers below 5.5 wrap it."""
    tower = model.get_submodule("model.vision_tower")
    return getattr(tower, "vision_model", tower)


NAMES = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.proj": "self_attn.out_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


def _of_block(number: int, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """One block of timm's in the names of CLIP: queries, keys and values are thirds of one matrix."""
    found, start = dict[str, Tensor](), f"encoder.layers.{number}."
    for kind in ("weight", "bias"):
        for ours, theirs in NAMES.items():
            found[f"{start}{theirs}.{kind}"] = state[f"blocks.{number}.{ours}.{kind}"]
        parts = state[f"blocks.{number}.attn.qkv.{kind}"].chunk(3)
        found |= {f"{start}self_attn.{n}_proj.{kind}": part for n, part in zip("qkv", parts, strict=True)}
    return found


def tower_from_timm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a ViT in the names of the tower; the classifier is left out."""
    found = {
        "embeddings.class_embedding": state["cls_token"].flatten(),
        "embeddings.position_embedding.weight": state["pos_embed"][0],
        "post_layernorm.weight": state["norm.weight"],
        "post_layernorm.bias": state["norm.bias"],
    }
    stem = "patch_embed.proj."
    found |= {f"embeddings.patch_embedding.{k.removeprefix(stem)}": v for k, v in state.items() if k.startswith(stem)}
    for number in range(sum(key.endswith("norm1.weight") for key in state)):
        found |= _of_block(number, state)
    return found


def take_tower(model: nn.Module, trained: nn.Module) -> None:
    """Give the tower the weights of a trained ``vit_mini``, or of a Segmenter's encoder, its positions resized.

    Raises:
        RuntimeError: names or shapes do not fit.
    """
    assert isinstance(model, VisionLanguageModel)
    tower: Any = encoder_of(model.model)
    if not isinstance(trained, Segmenter):
        tower.load_state_dict(tower_from_timm(trained.state_dict()))
        return
    state, side = trained.encoder.state_dict(), tower.config.image_size // tower.config.patch_size
    state["pos_embed"] = resize_positions(state["pos_embed"], trained.encoder.grid, (side, side))
    tower.load_state_dict(tower_from_timm(state))


def check_same(images: Tensor) -> float:
    """Largest difference of the class token between ``vit_mini`` and the tower made of it; both random."""
    torch.manual_seed(0)
    own, model = vit_mini().eval(), llava_mini().eval()
    take_tower(model, own)
    with torch.no_grad():
        return (encoder_of(model.model)(images).pooler_output - own.forward_features(images)[:, 0]).abs().max().item()
