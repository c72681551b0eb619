"""What a model of each task answers about one picture, in a form that a page can show.

Shapes: h, w of the image as the model sees it, K classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import matplotlib
import numpy as np
import torch
from hydra.utils import get_class
from omegaconf import DictConfig
from PIL import Image, ImageDraw
from timm.data import ImageNetInfo
from torch import Tensor, nn

from ttf.building import build
from ttf.data.transforms import preprocessing
from ttf.tasks.depth import deviation
from ttf.tasks.detection import Detecting
from ttf.tasks.matching import agreement
from ttf.tasks.segmentation import divergence
from ttf.tasks.windows import Inference, enlarged

SHOWN = 5  # classes of a classifier
SURE = 0.3  # boxes that are drawn
IMAGENET = 1000
COLOURS = ("#e6194b", "#4363d8", "#3cb44b", "#f58231", "#911eb4", "#46f0f0", "#f032e6", "#bcf60c")
Named = tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Answer:
    """What a model says.

    Attributes:
        lines: words with a share in [0, 1], best first; a share of -1 is not shown.
        picture: a mask, a depth map, boxes; None where words are all.
        raw: what two answers are compared by.
        legend: colours that occur in the picture, with their names.
    """

    lines: Named = ()
    picture: Image.Image | None = None
    raw: Any = None
    legend: tuple[tuple[str, str], ...] = field(default=())


class Viewer(ABC):
    """One kind of task: how a picture comes before the model, and what is shown of the answer.

    Args:
        cfg: the composed config of ``ttf eval`` for a model of this task.
        model: with its weights.
    """

    asks: ClassVar[bool] = False  # whether there is a question beside the picture

    def __init__(self, cfg: DictConfig, model: nn.Module) -> None:
        self.cfg, how = cfg, preprocessing(model)
        self.mean, self.std = how.mean, how.std

    @abstractmethod
    def prepare(self, picture: Image.Image) -> Tensor:
        """A picture in RGB as the normalised (3, h, w) float32 tensor."""

    @abstractmethod
    def answer(self, model: nn.Module, image: Tensor, question: str) -> Answer:
        """What the model says of a prepared image (1, 3, h, w)."""

    def beside(self, answer: Answer, base: Answer) -> Answer:
        """An answer as it is shown beside the uncompressed model's, which may set the scale of its picture."""
        return answer

    @abstractmethod
    def change(self, ours: Answer, base: Answer) -> dict[str, str]:
        """How far the compressed model's answer is from the uncompressed one's: names and values."""

    def _classes(self) -> Sequence[str]:
        """Names of the classes of the model's own data set."""
        found: Any = get_class(self.cfg.task.data[self.cfg.model.dataset]._target_)
        return [str(name) for name in found.classes]


class Classes(Viewer):
    """Classification: the five likeliest classes."""

    def __init__(self, cfg: DictConfig, model: nn.Module) -> None:
        super().__init__(cfg, model)
        self.transform = preprocessing(model).build()

    def prepare(self, picture: Image.Image) -> Tensor:
        """See ``Viewer.prepare``."""
        image: Tensor = self.transform(picture)
        return image

    def names(self, count: int) -> Sequence[str]:
        """Names of the classes, as many as the model has outputs."""
        if count == IMAGENET:
            known = ImageNetInfo()
            return [known.index_to_description(number).split(",")[0] for number in range(count)]
        own = self._classes() if self.cfg.model.dataset != "imagenet" else []
        return own if len(own) == count else [f"class {number}" for number in range(count)]

    def answer(self, model: nn.Module, image: Tensor, question: str) -> Answer:
        """See ``Viewer.answer``."""
        logits = model(image)
        logits = getattr(logits, "logits", logits)[0].float()
        values, indices = logits.softmax(0).topk(min(SHOWN, len(logits)))
        names = self.names(len(logits))
        best = zip(indices.tolist(), values.tolist(), strict=True)
        return Answer(tuple((names[index], value) for index, value in best), raw=logits.log_softmax(0))

    def change(self, ours: Answer, base: Answer) -> dict[str, str]:
        """KL(base || ours) of the class probabilities."""
        kl = (base.raw.exp() * (base.raw - ours.raw)).sum().item()
        same = int(base.raw.argmax()) == int(ours.raw.argmax())
        return {"KL, nats": f"{max(kl, 0.0):.4f}", "same class": "yes" if same else "no"}


class Masks(Viewer):
    """Semantic segmentation: the class of every pixel."""

    def __init__(self, cfg: DictConfig, model: nn.Module) -> None:
        super().__init__(cfg, model)
        self.inference: Inference = build(cfg.task.evaluation.inference, mean=self.mean, std=self.std)
        found: Any = get_class(cfg.task.data[cfg.model.dataset]._target_)
        self.classes, self.palette = found.classes, np.array(found.palette, dtype=np.uint8)

    def prepare(self, picture: Image.Image) -> Tensor:
        """See ``Viewer.prepare``; of models that see square windows, the one in the middle."""
        image, side = self.inference.prepare(picture), self.inference.window
        if side is None:
            return image
        image = enlarged(image, side)
        top, left = ((length - side) // 2 for length in image.shape[-2:])
        return image[:, top : top + side, left : left + side]

    def answer(self, model: nn.Module, image: Tensor, question: str) -> Answer:
        """See ``Viewer.answer``."""
        logits = model(image)[0].float()
        labels = logits.argmax(0)
        share = torch.bincount(labels.flatten(), minlength=len(logits)).double() / labels.numel()
        there = [number for number in share.argsort(descending=True).tolist() if share[number] > 0]
        lines = tuple((self.classes[number], share[number].item()) for number in there[:SHOWN])
        legend = tuple(("#" + bytes(self.palette[n]).hex(), self.classes[n]) for n in there)
        return Answer(lines, Image.fromarray(self.palette[labels.cpu().numpy()]), logits, legend)

    def change(self, ours: Answer, base: Answer) -> dict[str, str]:
        """KL(base || ours) a pixel, and pixels of the same class."""
        kl, same = divergence(ours.raw, base.raw)
        return {"KL a pixel, nats": f"{max(kl.item(), 0.0):.4f}", "same class": f"{100 * same.item():.1f} % of pixels"}


class Boxes(Viewer):
    """Detection: boxes with their classes and scores."""

    def __init__(self, cfg: DictConfig, model: nn.Module) -> None:
        super().__init__(cfg, model)
        self.inference: Detecting = build(cfg.task.evaluation.inference, mean=self.mean, std=self.std)

    def prepare(self, picture: Image.Image) -> Tensor:
        """See ``Viewer.prepare``."""
        return self.inference.prepare(picture)

    def answer(self, model: nn.Module, image: Tensor, question: str) -> Answer:
        """See ``Viewer.answer``."""
        found, names = self.inference.found(model, image[0], (image.shape[2], image.shape[3])), self._classes()
        drawn = Image.fromarray((255 * shown(image[0], self.mean, self.std)).astype(np.uint8))
        pen, sure = ImageDraw.Draw(drawn), found.scores >= SURE
        for box, label in zip(found.boxes[sure].tolist(), found.labels[sure].tolist(), strict=True):
            pen.rectangle(box, outline=COLOURS[label % len(COLOURS)], width=2)
        counts = torch.bincount(found.labels[sure], minlength=len(names)).tolist()
        lines = tuple((f"{count} x {name}", -1.0) for name, count in zip(names, counts, strict=True))
        legend = tuple((COLOURS[n % len(COLOURS)], name) for n, name in enumerate(names) if counts[n])
        return Answer(lines, drawn, found, legend)

    def change(self, ours: Answer, base: Answer) -> dict[str, str]:
        """F1 of the boxes that both find."""
        return {"boxes that agree (F1)": f"{100 * agreement(ours.raw, base.raw)['agreement'].item():.1f} %"}


class Depths(Viewer):
    """Depth estimation: near is bright."""

    def __init__(self, cfg: DictConfig, model: nn.Module) -> None:
        super().__init__(cfg, model)
        self.resizing: Any = build(cfg.task.evaluation.resizing, mean=self.mean, std=self.std)

    def prepare(self, picture: Image.Image) -> Tensor:
        """See ``Viewer.prepare``."""
        image: Tensor = self.resizing.prepare(picture)
        return image

    def answer(self, model: nn.Module, image: Tensor, question: str) -> Answer:
        """See ``Viewer.answer``."""
        depth = model(image)[0].float().cpu()
        line = f"nearest {depth.min().item():.2f} m, farthest {depth.max().item():.2f} m"
        return self.beside(answer := Answer(((line, -1.0),), raw=depth), answer)

    def beside(self, answer: Answer, base: Answer) -> Answer:
        """See ``Viewer.beside``: the same colour is the same depth."""
        near, far = base.raw.min().item(), base.raw.max().item()
        scaled = 1 - (answer.raw - near) / max(far - near, 1e-6)
        colours = matplotlib.colormaps["magma"](scaled.clamp(0, 1).numpy())[..., :3]
        return replace(answer, picture=Image.fromarray((255 * colours).astype(np.uint8)))

    def change(self, ours: Answer, base: Answer) -> dict[str, str]:
        """Mean relative difference."""
        return {"depth that differs": f"{100 * deviation(ours.raw, base.raw).item():.2f} %"}


class Answers(Viewer):
    """Questions about the picture."""

    asks = True

    def __init__(self, cfg: DictConfig, model: nn.Module) -> None:
        super().__init__(cfg, model)
        self.model: Any = model

    def prepare(self, picture: Image.Image) -> Tensor:
        """See ``Viewer.prepare``."""
        image: Tensor = self.model.preparation(picture)
        return image

    def answer(self, model: Any, image: Tensor, question: str) -> Answer:
        """See ``Viewer.answer``."""
        features = model.features(image)
        said = model.answer([question], features)[0] if question.strip() else "(ask a question)"
        lines = [said or "(nothing)", f"{len(features[0])} tokens of the picture were read"]
        if unknown := self._unknown(question):
            lines.append(f"words that it does not know: {', '.join(unknown)}")
        return Answer(tuple((line, -1.0) for line in lines), raw=said)

    def _unknown(self, question: str) -> list[str]:
        """Words of a question that the model's vocabulary lacks."""
        words = self.model.tokenizer
        found = words(question, add_special_tokens=False, return_offsets_mapping=True)
        places = zip(found["input_ids"], found["offset_mapping"], strict=True)
        return [question[start:end] for number, (start, end) in places if number == words.unk_token_id]

    def change(self, ours: Answer, base: Answer) -> dict[str, str]:
        """Whether the answers are the same."""
        return {"same answer": "yes" if ours.raw == base.raw else "no"}


VIEWERS: dict[str, type[Viewer]] = {"cls": Classes, "seg": Masks, "det": Boxes, "depth": Depths, "vqa": Answers}


def shown(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """A normalised image (3, h, w) as the model sees it, (h, w, 3) in [0, 1]."""
    centre, spread = (torch.tensor(tuple(v)).view(3, 1, 1) for v in (mean, std))
    return (image.float().cpu() * spread + centre).clamp(0, 1).permute(1, 2, 0).numpy()
