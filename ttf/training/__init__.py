"""Training and fine-tuning, compressed or not: ``scripts/finetune.py``."""

from ttf.training.boxes import Detection
from ttf.training.loop import Trainer
from ttf.training.objectives import Distillation, Pixels, ScaleInvariant, Supervised, TokenLabelling
from ttf.training.recipe import Recipe

__all__ = [
    "Detection",
    "Distillation",
    "Pixels",
    "Recipe",
    "ScaleInvariant",
    "Supervised",
    "TokenLabelling",
    "Trainer",
]
