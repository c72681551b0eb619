"""What a run would lack on this machine, in a few words for the cell of a table."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from ttf.building import build
from ttf.errors import MissingError
from ttf.models.weights import at_hand

ADVICE = {
    "no data": "set paths.imagenet=ROOT (IMAGENET=ROOT for make), the folder with val/<wnid>/*.JPEG",
    "data incomplete": "make doctor says what is wrong with the data set",
    "no weights": "make doctor says where to put them; with a connection they are downloaded",
    "not fine-tuned": "python scripts/finetune.py experiment=NAME trains it, eight GPUs for a day or so",
    "not run": "the same make target with data and weights runs it",
}


def trained_weights(cfg: DictConfig) -> Path:
    """The file that ``scripts/finetune.py`` writes for an experiment."""
    return Path(cfg.paths.results) / "training" / cfg.name / f"{cfg.model.name}.safetensors"


def lack(cfg: DictConfig) -> str:
    """What keeps a composed config of ``scripts/eval.py`` from running, a key of ``ADVICE``; nothing: "not run"."""
    if cfg.finetuned and not trained_weights(cfg).is_file():
        return "not fine-tuned"
    try:
        build(cfg.task.data[cfg.task.dataset])
    except MissingError:
        return "no data"
    except ValueError:
        return "data incomplete"
    return "not run" if at_hand(cfg.model, cfg.paths.weights, cfg.paths.downloads) else "no weights"
