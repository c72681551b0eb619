"""Token Transforming: training-free, many-to-many token compression for Vision Transformers (arXiv 2506.05709).

model = ttf.apply(timm.create_model("vit_small_patch16_224", pretrained=True), ratio=0.7)
"""

from ttf import measure
from ttf.api import LayerTrace, applied, apply, plan, remove, trace, twin

__all__ = ["LayerTrace", "applied", "apply", "measure", "plan", "remove", "trace", "twin"]
