"""Which models, pictures and methods the page offers: those that are on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from omegaconf import DictConfig
from PIL import Image
from torch import nn

from ttf.app.viewers import VIEWERS, Viewer
from ttf.building import build
from ttf.config_store import model, models
from ttf.data.subset import Shuffled
from ttf.experiments import of_groups
from ttf.methods import METHODS
from ttf.methods import build as build_method
from ttf.models.weights import at_hand, load_model
from ttf.tasks.options import pick_device

PICTURES = 8
FIRST = "vit_mini"
PAPER = "token_transform, literal equations"
SIZED_BY_BRANCH = {"tome_dense"}  # leaves no tokens behind that a picture could show


@dataclass(frozen=True)
class Loaded:
    """A model, ready.

    Attributes:
        name: of ``configs/models.yaml``.
        model: uncompressed, with its weights.
        viewer: how its answers are shown.
        pictures: some of its data set, as far as that is here.
        questions: what the data set asks about them; () for models that are asked nothing.
    """

    name: str
    model: nn.Module
    viewer: Viewer
    pictures: list[Image.Image]
    questions: tuple[str, ...] = ()


def methods() -> dict[str, dict[str, Any]]:
    """Arguments of ``ttf.apply`` by the name that the page shows; methods that need trained parameters are left out."""
    found: dict[str, dict[str, Any]] = {"token_transform": {"method": "token_transform"}}
    found[PAPER] = {"method": "token_transform", "preset": "paper"}
    for name in sorted(set(METHODS) - set(found) - SIZED_BY_BRANCH):
        try:
            build_method(name)
        except ValueError:  # it needs parameters
            continue
        found[name] = {"method": name}
    return found


class Shelf:
    """The models of this machine; each is loaded when it is first asked for, and kept.

    Args:
        paths: where data and weights are, as in ``configs/paths``.
        device: "auto", "cpu" or another of torch.
        only: names of models to offer; None: all that are here.

    Raises:
        ValueError: a name that is no model, or none of the models is here.
    """

    def __init__(self, paths: DictConfig, device: str = "auto", only: list[str] | None = None) -> None:
        unknown = sorted(set(only or ()) - set(models()))
        if unknown:
            raise ValueError(f"there is no model {', '.join(unknown)}: choose of {', '.join(sorted(models()))}")
        self.paths, self.device = paths, pick_device(device)
        self.names = [name for name in models() if (only is None or name in only) and self._here(name)]
        if not self.names:
            raise ValueError("no weights of these models are here: ttf doctor says what is missing")
        self.names.sort(key=lambda name: (models()[name]["weights"] != "embedded", name != FIRST))
        self.loaded = cache(self._loaded)

    def _here(self, name: str) -> bool:
        entry = models()[name]
        if entry["weights"] in ("none", "transformers") or not set(entry["tasks"]) & set(VIEWERS):
            return False
        return at_hand(model(name), self.paths.weights, self.paths.downloads) is not None

    def _config(self, name: str) -> DictConfig:
        task = next(task for task in models()[name]["tasks"] if task in VIEWERS)
        cfg = of_groups((f"model={name}", f"task={task}"))
        cfg.paths = self.paths
        return cfg

    def _loaded(self, name: str) -> Loaded:
        if name not in self.names:
            raise ValueError(f"model {name!r} is not here: choose one of {', '.join(self.names)}")
        cfg = self._config(name)
        network = load_model(cfg.model, None, self.paths.weights, self.paths.downloads).to(self.device)
        viewer = VIEWERS[cfg.task.name](cfg, network)
        return Loaded(name, network, viewer, *_examples(cfg, viewer.asks))


def _examples(cfg: DictConfig, asks: bool) -> tuple[list[Image.Image], tuple[str, ...]]:
    """Some pictures of the data set, and the questions about them; none where it is not on this machine."""
    try:
        data = build(cfg.task.data[cfg.task.dataset])
    except ValueError:
        return [], ()
    chosen = Shuffled(data, PICTURES).indices
    asked = dict.fromkeys(one.text for index in chosen for one in data.questions(index)) if asks else ()
    return [data.image(index).convert("RGB") for index in chosen], tuple(asked)
