"""How well a model does while it trains, over all processes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ttf.data.depth_protocol import Protocol
from ttf.metrics.segmentation import scores
from ttf.tasks import segmentation
from ttf.tasks.resizing import Resizing
from ttf.training.data import evaluation_batches


class Score(ABC):
    """What an image contributes, and the figure of a set.

    Attributes:
        name: of the figure, a column of the log.
        batch_size: images that go through the model together.
        parts: names of figures of parts of the set, further columns of the log.
    """

    name: ClassVar[str]
    batch_size: ClassVar[int]
    parts: tuple[str, ...] = ()

    def by_part(self, outcomes: Tensor) -> dict[str, float]:
        """The figures of ``parts``."""
        return {}

    @abstractmethod
    def of_batch(self, logits: Tensor, targets: Tensor) -> Tensor:
        """What the images of a batch contribute, (B, ...), numbers or truth values."""

    @abstractmethod
    def percent(self, outcomes: Tensor) -> float:
        """The figure of a set, from what its images contribute, (n, ...)."""

    @torch.no_grad()
    def outcomes(self, model: nn.Module, data: Any, engine: Accelerator, workers: int = 0) -> Tensor:
        """What every image of ``data`` contributes; the model is set to evaluation here, and runs in float32.

        Every process takes each so-manieth image; all get the answer.

        Returns:
            (n, ...) on the CPU, in the order of the data.
        """
        model.eval()
        mine = range(engine.process_index, len(data), engine.num_processes)
        found: list[Tensor] = []
        for images, targets, *_ in evaluation_batches(data, mine, self.batch_size, workers):
            found.append(self.of_batch(model(images.to(engine.device)), targets.to(engine.device)))
        part = torch.cat(found)
        whole = torch.zeros(len(data), *part.shape[1:], device=part.device, dtype=torch.float64)
        whole[torch.tensor(mine)] = part.double()
        return engine.reduce(whole, "sum").to(part.dtype).cpu()


@torch.no_grad()
def mean_loss(objective: nn.Module, data: Any, engine: Accelerator, size: int, workers: int = 0) -> float:
    """Mean of an objective over a set, in evaluation mode; every process takes each so-manieth image.

    Args:
        objective: gives the mean loss of a batch.
        data: items as the objective takes them.
        engine: of the processes.
        size: images that go through the model together.
        workers: processes that make the data.
    """
    objective.eval()
    mine = range(engine.process_index, len(data), engine.num_processes)
    total = torch.zeros(2, dtype=torch.float64, device=engine.device)
    for batch in evaluation_batches(data, mine, size, workers):
        loss = objective(*(tensor.to(engine.device) for tensor in batch)).item()
        total += torch.tensor([loss * len(batch[0]), len(batch[0])], device=engine.device)
    loss, images = engine.reduce(total, "sum").tolist()
    return loss / images


class Top1(Score):
    """Share of the images that the model classifies correctly; (n,) bool."""

    name = "top1"
    batch_size = 100

    def of_batch(self, logits: Tensor, targets: Tensor) -> Tensor:
        """See ``Score.of_batch``."""
        return logits.argmax(1) == targets

    def percent(self, outcomes: Tensor) -> float:
        """See ``Score.percent``."""
        return 100 * outcomes.double().mean().item()


class MeanIoU(Score):
    """mIoU of whole images, all of one size; (n, 3, K) int64, see ``ttf.tasks.segmentation.areas``."""

    name = "miou"
    batch_size = 8

    def of_batch(self, logits: Tensor, targets: Tensor) -> Tensor:
        """See ``Score.of_batch``."""
        pairs = zip(logits.argmax(1), targets, strict=True)
        return torch.stack([segmentation.areas(segmentation.confusion(p, t, logits.shape[1])) for p, t in pairs])

    def percent(self, outcomes: Tensor) -> float:
        """See ``Score.percent``."""
        return 100 * scores(outcomes.sum(0)).miou.item()


class Delta1(Score):
    """Share of the pixels within a factor of 1.25 of the true depth, mean over images; (n,) float32.

    Args:
        resizing: how predictions come back to the size of the truth.
    """

    name = "d1"
    batch_size = 8

    def __init__(self, resizing: Resizing) -> None:
        self.resizing, self.protocol = resizing, Protocol()

    def outcomes(self, model: nn.Module, data: Any, engine: Accelerator, workers: int = 0) -> Tensor:
        """See ``Score.outcomes``; which pixels count is the data set's protocol."""
        self.protocol = data.protocol
        return super().outcomes(model, data, engine, workers)

    def of_batch(self, logits: Tensor, targets: Tensor) -> Tensor:
        """See ``Score.of_batch``. Raises ``ValueError`` where nothing was measured in an image."""
        found = []
        for depth, truth in zip(logits, targets.cpu(), strict=True):
            errors = self.protocol.errors(self.resizing.back(depth, (truth.shape[0], truth.shape[1])).cpu(), truth)
            if errors is None:
                raise ValueError("an image of the test set has no measured depth where depths count: leave it out")
            found.append(errors[0])
        return torch.stack(found).to(logits.device)

    def percent(self, outcomes: Tensor) -> float:
        """See ``Score.percent``."""
        return 100 * outcomes.double().mean().item()
