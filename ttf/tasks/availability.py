"""What this machine has of what a run needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ttf.building import build
from ttf.errors import MissingError
from ttf.models.weights import at_hand
from ttf.results.store import signature

ADVICE = {
    "no data": "set paths.imagenet=ROOT (IMAGENET=ROOT for make), the folder with val/<wnid>/*.JPEG; paths.ade20k, "
    "paths.cityscapes and paths.camvid for segmentation; paths.coco and paths.bccd for detection; paths.nyuv2 and "
    "paths.redkitchen for depth",
    "data incomplete": "make doctor says what is wrong with the data set",
    "no weights": "make doctor says where to put them; with a connection they are downloaded",
    "not fine-tuned": "ttf finetune experiment=NAME trains it, eight GPUs for a day or so",
    "not run": "the same make target with data and weights runs it",
}


def trained_weights(cfg: DictConfig) -> Path:
    """The file that ``scripts/finetune.py`` writes for an experiment. Raises ``ValueError`` where none is named."""
    if not cfg.name:
        raise ValueError("finetuned=true takes the weights of an experiment: give experiment=NAME, or checkpoint=FILE")
    return Path(cfg.paths.trained) / cfg.name / f"{cfg.model.name}.safetensors"


def check_fetched(cfg: DictConfig) -> None:
    """Raise ``MissingError`` where a model that is not downloaded by itself is not here: what to fetch, and where to.

    Args:
        cfg: whose model may have ``fetch``: size in GB and licence of what its name stands for on the hub.
    """
    told = cfg.model.get("fetch")
    if not told or cfg.checkpoint or at_hand(cfg.model, cfg.paths.weights, cfg.paths.downloads):
        return
    from huggingface_hub.constants import HF_HUB_CACHE

    name = cfg.model.network.name
    raise MissingError(
        f"no weights of {name} on this machine. Fetch them: hf download {name} ({told.gigabytes} GB, {told.licence}), "
        f"into {HF_HUB_CACHE}; or give network.name=FOLDER, where they lie as save_pretrained writes them"
    )


class Machine:
    """What is here, looked up once a data set and a model."""

    def __init__(self) -> None:
        self._data: dict[str, str | ValueError] = {}
        self._weights: dict[str, bool] = {}

    def digest(self, cfg: DictConfig) -> str | None:
        """The digest of the data set of a run; None where it is not here, or not complete."""
        found = self._data_set(cfg)
        return found if isinstance(found, str) else None

    def _data_set(self, cfg: DictConfig) -> str | ValueError:
        node: Any = OmegaConf.to_container(cfg.task.data[cfg.task.dataset], resolve=True)
        key = signature(node)
        if key not in self._data:
            try:
                self._data[key] = build(cfg.task.data[cfg.task.dataset]).digest()
            except ValueError as error:
                self._data[key] = error
        return self._data[key]

    def missing(self, cfg: DictConfig) -> str:
        """What keeps a composed config of ``scripts/eval.py`` from running, a key of ``ADVICE``; "not run": nothing."""
        if cfg.finetuned and not cfg.checkpoint and not trained_weights(cfg).is_file():
            return "not fine-tuned"
        data = self._data_set(cfg)
        if isinstance(data, ValueError):
            return "no data" if isinstance(data, MissingError) else "data incomplete"
        if cfg.model.name not in self._weights:
            self._weights[cfg.model.name] = bool(at_hand(cfg.model, cfg.paths.weights, cfg.paths.downloads))
        return "not run" if self._weights[cfg.model.name] else "no weights"
