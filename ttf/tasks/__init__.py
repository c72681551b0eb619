"""Tasks: what is measured of which images. ``ttf.tasks.Classification(model=model, data=data).evaluate(ratio=0.7)``."""

from ttf.tasks.base import Task
from ttf.tasks.classification import Classification
from ttf.tasks.depth import Depth
from ttf.tasks.detection import Detection
from ttf.tasks.segmentation import Segmentation
from ttf.tasks.vqa import QuestionAnswering

__all__ = ["Classification", "Depth", "Detection", "QuestionAnswering", "Segmentation", "Task"]
