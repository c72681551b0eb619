"""One process of a small training run in float64, for ``test_training_processes.py``: FOLDER ACCUMULATE."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch.utils.data import TensorDataset

import ttf
from ttf.training import Distillation, Recipe, Trainer
from ttf.training.data import Mixing
from ttf.training.loop import make_engine


def main(folder: Path, accumulate: int) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = VisionTransformer(img_size=32, patch_size=8, embed_dim=24, depth=4, num_heads=3, num_classes=5).double()
    objective = Distillation(model, alpha=0.5, label_smoothing=0.1)
    ttf.apply(model, ratio=0.5)
    data = TensorDataset(torch.randn(37, 3, 32, 32).double(), torch.randint(0, 5, (37,)))
    recipe = Recipe(epochs=2, batch_size=8, accumulate=accumulate, lr=1e-3, min_lr=1e-4, clip_grad=1.0, workers=0)
    trainer = Trainer(
        objective, data, data, recipe, folder, engine=make_engine(device="cpu"), mixing=Mixing(5, images=4)
    )
    trainer.fit()
    if trainer.engine.is_main_process:
        save_file(model.state_dict(), folder / "weights.safetensors")
        print("processes", trainer.engine.num_processes)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
