"""Training for segmentation: the loss of pixels, mIoU while training, how images come, where the encoder comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn import functional as F

import ttf.cli  # noqa: F401 (resolvers of the configs)
from ttf.data.scenes import SceneSegmentation
from ttf.experiments import register
from ttf.models.vit_mini import segmenter_mini
from ttf.training import Pixels
from ttf.training.evaluation import MeanIoU
from ttf.training.kinds import kind_of
from ttf.training.loop import make_engine
from ttf.training.run import FineTuning

CONFIGS = str(Path(__file__).parents[3] / "configs")


@pytest.fixture
def configured(tmp_path: Path) -> Any:
    def configure(*overrides: str) -> DictConfig:
        quick = ["train.steps=2", "train.batch_size=2", "train.eval_every=2", "data.test.length=4", "device=cpu"]
        with initialize_config_dir(CONFIGS, version_base="1.3"):
            register(["mini/seg"])
            return compose("finetune", ["experiment=mini/seg", f"output={tmp_path}/out", *quick, *overrides])

    return configure


def test_pixels_that_do_not_count_have_no_gradient() -> None:
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    targets = torch.tensor([[[0, 255], [2, 255]]])
    loss = Pixels(nn.Identity())(logits, targets)
    counted = torch.stack((logits[0, :, 0, 0], logits[0, :, 1, 0]))
    torch.testing.assert_close(loss, F.cross_entropy(counted, torch.tensor([0, 2])))
    loss.backward()
    assert logits.grad is not None and (logits.grad[0, :, :, 1] == 0).all() and (logits.grad[0, :, :, 0] != 0).all()


class Answers(nn.Module):
    """Says class 1 everywhere."""

    def forward(self, images: Tensor) -> Tensor:
        return F.one_hot(torch.ones(len(images), 2, 2, dtype=torch.int64), 2).permute(0, 3, 1, 2).float()


def test_miou_by_hand() -> None:
    masks = [torch.tensor([[1, 1], [1, 0]]), torch.tensor([[1, 255], [255, 255]])]
    data = [(torch.zeros(3, 2, 2), mask) for mask in masks]
    found = MeanIoU().outcomes(Answers(), data, make_engine(device="cpu"))
    assert found.shape == (2, 3, 2) and found.dtype == torch.int64
    assert MeanIoU().percent(found) == pytest.approx(100 * (0 + 4 / 5) / 2)


def test_images_come_whole_or_augmented(configured: Any) -> None:
    model, data = segmenter_mini(), SceneSegmentation("train", 1, 3)
    image, mask = data[0]
    kind = kind_of(model, configured())
    pixels, labels = kind.test(image, mask)
    assert pixels.shape == (3, 96, 96) and torch.equal(labels, mask) and kind.score.name == "miou"
    assert pixels.min() >= -1 and pixels.max() <= 1
    cropped = kind_of(model, configured("augment={crop: [32, 48], shorter: 96}")).training(image, mask)
    assert [tuple(part.shape) for part in cropped] == [(3, 32, 48), (32, 48)]
    with pytest.raises(ValueError, match="set mixing=null"):
        kind_of(model, configured("mixing={images: 2}"))
    with pytest.raises(ValueError, match="model.inference.window=null"):
        kind_of(model, configured("model.inference.window=64"))


def test_a_segmenter_starts_from_a_trained_encoder_and_is_evaluated_by_miou(configured: Any) -> None:
    training = FineTuning(configured())
    before = training.model.get_submodule("encoder.blocks.3.mlp.fc1").weight.detach().clone()
    outcome = training.run()
    assert set(outcome["miou"]) == {"finetuned"} and 0 <= outcome["miou"]["finetuned"] <= 100
    after = training.model.get_submodule("encoder.blocks.3.mlp.fc1").weight
    assert 0 < (after - before).abs().max() < 0.01  # it is trained, from where it was
    head = (training.folder / "log.csv").read_text().splitlines()[0]
    assert head == "step,loss,lr,miou,seconds"


def test_an_encoder_for_another_model_is_refused(configured: Any) -> None:
    with pytest.raises(ValueError, match="has no plain ViT as its encoder"):
        FineTuning(configured("model=vit_mini", "data=scenes_train"))
